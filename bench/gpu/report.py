"""One record of a run: JSON for machines, Markdown for people, a short table on the terminal."""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

from bench.gpu import machine

ROOT = Path(__file__).parents[2]
HEADINGS = ("row", "fastconv", "torch", "torch / fastconv", "% of roof")
LOG_LINES = 25
Record = dict[str, Any]


def commit_name() -> str:
    """Return the commit that is measured: a copy without its history has it in the environment."""
    if given := os.environ.get("FASTCONV_COMMIT"):
        return re.sub(r"[^0-9a-zA-Z+.-]", "", given)
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def collect(work: Path, device: str) -> Record:
    """Read what every part has left in the work folder: its status, its log, its record."""
    parts = []
    for line in (work / "parts.tsv").read_text().splitlines():
        name, status, seconds, detail = line.split("\t")
        part: Record = {"part": name, "status": status, "seconds": int(seconds), "detail": detail}
        stem = name.replace(":", "-")
        record, log = work / f"{stem}.json", work / f"{stem}.log"
        if record.exists() and status != "skipped":
            part["record"] = json.loads(record.read_text())
            part["detail"] = _summary(part["record"], device) + ("; " + detail) * bool(detail)
        elif log.exists() and status != "skipped":
            part["detail"] = detail or _last_words(log)
        if log.exists() and status == "failed":
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            part["log"] = [line.replace(str(ROOT), ".")[:300] for line in lines]
        parts.append(part)
    return {
        "date": str(datetime.date.today()),
        "commit": commit_name(),
        "machine": machine.describe(device),
        "state": machine.state(),
        "parts": parts,
    }


def _last_words(log: Path) -> str:
    """Return the last line of a log that counts something, else its last line."""
    lines = [line.strip(" =") for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    if summary := [line for line in lines if line.startswith("summary: ")]:
        return summary[-1].removeprefix("summary: ")
    counts = [line for line in lines if re.search(r"\d+ (passed|failed|error|of|tests)", line)]
    return (counts or lines or [""])[-1][:160]


def _summary(record: Record, device: str) -> str:
    """Return one line on a bench."""
    ratios = [r["torch_over_fastconv"] for r in record["rows"] if "torch_over_fastconv" in r]
    left = len(record.get("left_out", []))
    if device == "cpu":
        return f"{record['planned']} rows planned, {len(record['rows'])} tiny ones rehearsed"
    words = [f"{len(record['rows'])} of {record['planned']} rows"]
    if ratios:
        wins = sum(ratio >= 1 for ratio in ratios)
        words.append(
            f"ahead of torch in {wins} of {len(ratios)}, median {statistics.median(ratios):.2f}x"
        )
    words += [f"{record['failed']} wrong or failed"] * bool(record.get("failed"))
    words += [f"{left} left out: no time"] * bool(left)
    return ", ".join(words)


def _cells(row: Record) -> list[str]:
    """Return a row of the Markdown table of an operation."""
    cells = [row["row"]]
    for name in ("fastconv", "torch"):
        entry = row.get(name, {"failed": row.get("failed", "")})
        if "failed" in entry:
            cells.append(entry["failed"].replace("|", "/")[:120])
        elif "median_us" in entry:
            cells.append(f"{entry['median_us']:.1f} ±{entry['iqr_us']:.1f} µs")
        else:
            cells.append("")
    ratio = row.get("torch_over_fastconv")
    cells.append("" if ratio is None else f"{ratio:.2f}x")
    share = row.get("percent_of_roof")
    cells.append("" if share is None else f"{share:.0f} {row['bound']}")
    return cells


def _call_cells(row: Record, doors: list[str]) -> list[str]:
    """Return a row of the Markdown table of call costs."""
    cells = [row["row"]]
    for door in doors:
        entry = row.get(door, {})
        text = entry.get("failed") or f"{entry.get('median_us', float('nan')):.1f} µs"
        if "in_graph_us" in entry:
            text += f" ({entry['in_graph_us']:.2f} in a graph)"
        cells.append(text if entry else "")
    return cells


def _table(headings: list[str], lines: list[list[str]]) -> list[str]:
    """Return a Markdown table."""
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return ["| " + " | ".join(line) + " |" for line in (headings, rule, *lines)]


def markdown(record: Record) -> str:
    """Return the report: the parts, then every bench, losses first."""
    about = record["machine"]
    state = record["state"]
    text = [
        f"# {about.get('gpu', 'no GPU')}, {record['date']}, commit {record['commit']}",
        "",
        f"torch {about['torch']}, CUDA {about['cuda']}, cuDNN {about.get('cudnn')}, driver"
        f" {state.get('driver_version')}, fastconv for {about.get('fastconv_archs')}."
        f" Largest clocks {state.get('clocks.max.sm')} MHz SM, {state.get('clocks.max.mem')} MHz"
        " memory; the clocks while measuring are in the JSON file.",
        "",
        *_table(
            ["part", "status", "seconds", "what"],
            [[p["part"], p["status"], str(p["seconds"]), p["detail"]] for p in record["parts"]],
        ),
    ]
    for part in record["parts"]:
        rows = part.get("record", {}).get("rows", [])
        if not rows:
            continue
        text += ["", f"## {part['part']}", ""]
        if part["part"] == "bench:overhead":
            doors = list(dict.fromkeys(k for r in rows for k, v in r.items() if type(v) is dict))
            text += _table(["call", *doors], [_call_cells(row, doors) for row in rows])
        else:
            roof = part["record"]["roof_tflops_and_tb_s"]
            text += [
                "Roof (TFLOP/s; copy in TB/s): " + str({k: round(v, 2) for k, v in roof.items()})
            ]
            worst_first = sorted(rows, key=lambda row: row.get("torch_over_fastconv", -1))
            text += ["", *_table(list(HEADINGS), [_cells(row) for row in worst_first])]
        if left := part["record"].get("left_out"):
            text += ["", f"Not run, no time left: {len(left)} rows."]
    return "\n".join(text) + "\n"


def show(record: Record) -> None:
    """Print the parts; with rich where it is installed."""
    lines = [(p["part"], p["status"], f"{p['seconds']} s", p["detail"]) for p in record["parts"]]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in lines:
            print("{:16} {:13} {:>6}  {}".format(*line))
        return
    table = Table("part", "status", "time", "what")
    colours = {"passed": "green", "failed": "red"}
    for line in lines:
        table.add_row(*line, style=colours.get(line[1]))
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def write(record: Record, out: Path) -> Path:
    """Write the JSON and the Markdown file; returns the path without its ending."""
    out.mkdir(parents=True, exist_ok=True)
    gpu = machine.file_name(str(record["machine"].get("gpu", "no_gpu")))
    stem = out / f"{gpu}-{record['date']}-{record['commit']}"
    Path(f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    Path(f"{stem}.md").write_text(markdown(record))
    return stem
