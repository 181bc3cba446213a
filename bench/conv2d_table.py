"""The conv2d table: torch against fastconv on every convolution of five networks.

python -m bench.conv2d_table --family 3x3 --batch 1
python -m bench.conv2d_table --isa avx2 --family grouped --all-rows
python -m bench.conv2d_table --output            # everything, kept in bench/results
python -m bench.conv2d_table --show a.json b.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import fastconv
from bench.conv2d_race import Result, measure
from bench.conv2d_rows import EVERY_LAYOUT, FAMILIES, Family, Row
from bench.interleave import keep_memory
from bench.roofline import Roof
from bench.roofline import measure as measure_roof
from bench.run import HERE, commit_name, machine_name
from bench.shapes import BATCHES, LAYOUTS

ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "neon")
SHOWN = 8  # of the rows of a family
HEADING = (
    f"{'ratio':>7} {'torch ms':>9} {'ours ms':>9} {'GFLOP/s':>8} {'% roof':>7} {'L2 error':>9}"
    "  row (worst first)"
)


def geometric_mean(values: Iterable[float]) -> float:
    """Return the mean of ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def row_line(result: Result, side: str) -> str:
    """Return one measurement as a line."""
    own = f"torch {side}"
    theirs = result.milliseconds.get(own, result.milliseconds["torch"])
    error = f"{result.errors[side]:.1e}" if side in result.errors else ""
    roof = f"{result.percent_of_roof[side]:.0f}{'m' if result.bound == 'memory' else ' '}"
    return (
        f"{result.ratios[side]:6.2f}x {theirs:9.3f} {result.milliseconds[side]:9.3f}"
        f" {result.gflop_s[side]:8.1f} {roof:>7} {error:>9}"
        f"  {result.layer}, batch {result.batch}, {result.layout}"
        + (f"  WRONG {result.wrong}" if result.wrong else "")
    )


def summaries(family: Family, results: Sequence[Result]) -> list[dict[str, object]]:
    """Return a line of the family table per target: what was to be reached and what was."""
    lines: list[dict[str, object]] = []
    for layout, (mean, least) in (family.targets or {EVERY_LAYOUT: (1.0, 0.0)}).items():
        chosen = [r for r in results if layout in (EVERY_LAYOUT, r.layout)]
        if not chosen:
            continue
        ratios = [r.ratios[family.side] for r in chosen]
        worst = min(chosen, key=lambda r: r.ratios[family.side])
        lines.append(
            {
                "family": family.title,
                "layout": layout or "both",
                "rows": len(ratios),
                "geomean": geometric_mean(ratios),
                "geomean_target": mean if family.targets else None,
                "least": min(ratios),
                "least_target": least if family.targets else None,
                "below": sum(ratio < least for ratio in ratios),
                "worst": f"{worst.layer}, batch {worst.batch}, {worst.layout}",
            }
        )
    return lines


def _against(value: float, target: object) -> str:
    if not isinstance(target, (int, float)):
        return f"{value:.2f}"
    return f"{value:.2f} {'>=' if value >= target else '< '} {target:g}"


def summary_table(lines: Iterable[dict]) -> list[str]:
    """Return the family table in Markdown."""
    table = [
        "| family | layout | rows | geomean | least | rows below | worst row |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        mean = _against(line["geomean"], line["geomean_target"])
        least = _against(line["least"], line["least_target"])
        table.append(
            f"| {line['family']} | {line['layout']} | {line['rows']} | {mean} | {least} |"
            f" {line['below']} | {line['worst']} |"
        )
    return table


def report(results: Sequence[Result], machine: dict, names: Sequence[str], shown: int) -> list[str]:
    """Return the whole report: wrong answers, every family's rows, the family table."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    lines += [f"WRONG {r.layer}, {r.what}, {r.layout}: {r.wrong}" for r in results if r.wrong]
    table: list[dict] = []
    for name in names:
        family = FAMILIES[name]
        wanted = set(family.rows())
        found = [r for r in results if r.row in wanted]
        if not found:
            continue
        found.sort(key=lambda r: r.ratios[family.side])
        lines += [f"{family.title}, {family.what}, {family.dtype}, {family.side}", HEADING]
        lines += [row_line(r, family.side) for r in (found[:shown] if shown else found)]
        lines.append("")
        table += summaries(family, found)
    return [*lines, *summary_table(table)]


def machine_facts(roof: Roof) -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "machine": machine_name(),
        "date": str(datetime.date.today()),
        "commit": commit_name(),
        "torch": torch.__version__,
        "isa": os.environ.get("FASTCONV_ISA", "best"),
        "frozen": hasattr(fastconv, "freeze"),
        "threads": roof.threads,
        "float32_gflops": round(roof.float32_gflops),
        "bfloat16_gflops": round(roof.bfloat16_gflops),
        "copy_gb_s": round(roof.copy_gb_s, 1),
    }


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """Return the rows of the chosen families, each once."""
    rows = dict.fromkeys(row for name in options.family for row in FAMILIES[name].rows())
    return [
        row
        for row in rows
        if row.batch in options.batch
        and row.layout in options.layout
        and (not options.k or options.k in row.layer)
    ]


def run(options: argparse.Namespace) -> tuple[list[Result], dict[str, object]]:
    """Measure all chosen rows; rows beyond --seconds are left out and said to be."""
    torch.set_num_threads(options.threads)
    keep_memory()
    roof = measure_roof()
    began = time.perf_counter()
    rows, results = chosen_rows(options), []
    for number, row in enumerate(rows):
        if options.seconds and time.perf_counter() - began > options.seconds:
            print(f"out of time: {len(rows) - number} of {len(rows)} rows left out")
            break
        results.append(measure(row, options.budget, roof))
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{len(rows)} {row.layer:<40}", end="", file=sys.stderr)
    return results, machine_facts(roof)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.conv2d_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = [name for name, family in FAMILIES.items() if family.targets]
    parser.add_argument(
        "--family", nargs="+", choices=list(FAMILIES), default=every, metavar="NAME",
        help=f"of {', '.join(FAMILIES)}; default: those with a target",
    )  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("-k", metavar="TEXT", help="rows whose layer holds this, such as vgg16")
    parser.add_argument("--isa", choices=ISAS, help="instruction set that fastconv is held to")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.15, help="seconds per row, after checks")
    parser.add_argument("--seconds", type=float, help="begin no row after so many seconds")
    parser.add_argument("--all-rows", action="store_true", help="print every row, not the worst")
    parser.add_argument(
        "--output", type=Path, nargs="?", const=Path(), metavar="FILE",
        help="keep the record (.json) and the report (.md); default place: bench/results",
    )  # fmt: skip
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="FILE",
        help="report records together, run nothing; of a row in several, the last counts",
    )  # fmt: skip
    return parser.parse_args(arguments)


def keep(path: Path, results: Sequence[Result], machine: dict, text: Sequence[str]) -> None:
    """Write the record and, beside it, the report."""
    if path == Path():
        isa = "" if machine["isa"] == "best" else f"-{machine['isa']}"
        stem = f"conv2d-{machine['machine']}-{machine['date']}-{machine['commit']}{isa}"
        path = HERE / "results" / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [r.as_dict() for r in results]
    path.write_text(json.dumps({"machine": machine, "rows": rows}, separators=(",", ":")))
    rows_end = text.index("| family | layout | rows | geomean | least | rows below | worst row |")
    body = ["# conv2d on CPU, torch's time / fastconv's", "", text[0], "", *text[rows_end:], ""]
    path.with_suffix(".md").write_text("\n".join([*body, "```", *text[2:rows_end], "```", ""]))
    print(f"record: {path}")


def load(paths: Sequence[Path]) -> tuple[list[Result], dict[str, object]]:
    """Read records; of a row in several, the last counts."""
    rows: dict[Row, Result] = {}
    machine: dict[str, object] = {}
    for path in paths:
        record = json.loads(path.read_text())
        machine = record["machine"]
        rows |= {result.row: result for result in (Result(**row) for row in record["rows"])}
    return list(rows.values()), machine


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or show; returns 1 where an answer was wrong, whatever the times."""
    options = parse(arguments)
    if options.isa and os.environ.get("FASTCONV_ISA") != options.isa:  # read when it is loaded
        command = [sys.executable, "-m", "bench.conv2d_table", *(arguments or sys.argv[1:])]
        return subprocess.run(command, env=os.environ | {"FASTCONV_ISA": options.isa}).returncode
    results, machine = load(options.show) if options.show else run(options)
    text = report(results, machine, options.family, 0 if options.all_rows else SHOWN)
    print("\n".join(text))
    if options.output is not None:
        every = report(results, machine, options.family, 0)
        keep(options.output, results, machine, every)
    return int(any(result.wrong for result in results))


if __name__ == "__main__":
    sys.exit(main())
