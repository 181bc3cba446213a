"""The pool table: torch against fastconv on the poolings of well-known networks.

python -m bench.pool_table --family max --batch 1
python -m bench.pool_table --isa avx2 -k vgg16 --all-rows
python -m bench.pool_table --output              # everything, kept in bench/results
python -m bench.pool_table --show a.json b.json

GB/s are the bytes that a call must move, over its time; percentages are of a copy's speed, and
`large` marks the rows that no cache holds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.interleave import keep_memory
from bench.pool_race import Result, geometric_mean, measure
from bench.pool_shapes import FAMILIES, Family, Row
from bench.roofline import Roof
from bench.roofline import measure as measure_roof
from bench.run import HERE, commit_name, machine_name
from bench.shapes import BATCHES, LAYOUTS

ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "neon")
LEAST_OF_COPY = 70.0  # percent, for large rows
SHOWN = 8  # of the rows of a family
HEADING = (
    f"{'ratio':>7} {'torch ms':>9} {'ours ms':>9} {'GB/s':>6} {'% copy':>7}  row (worst first)"
)
TABLE_HEADING = (
    "| family | layout | rows | geomean | least | rows below | large rows | % of copy, least |"
    " worst row |"
)


def row_line(result: Result) -> str:
    """Return one measurement as a line."""
    times = result.milliseconds
    return (
        f"{result.ratio:6.2f}x {times['torch']:9.3f} {times['fastconv']:9.3f} {result.gb_s:6.1f}"
        f" {result.percent_of_copy:6.0f}{'L' if result.large else ' '}"
        f"  {result.layer}, batch {result.batch}, {result.dtype}, {result.layout}"
        + (f"  WRONG {result.wrong}" if result.wrong else "")
    )


def _against(value: float, target: float | None, digits: int = 2) -> str:
    if target is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} {'>=' if value >= target else '< '} {target:g}"


def summary_lines(family: Family, results: Sequence[Result]) -> list[str]:
    """Return a line of the family table per layout: what was to be reached and what was."""
    lines = []
    for layout in family.layouts:
        chosen = [r for r in results if r.layout == layout]
        if not chosen:
            continue
        mean, least = family.targets.get(layout, (None, None))
        ratios = [r.ratio for r in chosen]
        worst = min(chosen, key=lambda r: r.ratio)
        shares = [r.percent_of_copy for r in chosen if r.large]
        share = _against(min(shares), LEAST_OF_COPY if mean else None, 0) if shares else ""
        below = sum(ratio < least for ratio in ratios) if least else ""
        average = _against(geometric_mean(ratios), mean)
        lines.append(
            f"| {family.title} | {layout} | {len(chosen)} | {average}"
            f" | {_against(min(ratios), least)} | {below} | {len(shares)} | {share}"
            f" | {worst.layer}, batch {worst.batch}, {worst.dtype} |"
        )
    return lines


def report(results: Sequence[Result], machine: dict, names: Sequence[str], shown: int) -> list[str]:
    """Return the whole report: wrong answers, every family's rows, the family table."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    lines += [f"WRONG {r.row}: {r.wrong}" for r in results if r.wrong]
    table: list[str] = []
    for name in names:
        family = FAMILIES[name]
        wanted = set(family.rows())
        found = sorted((r for r in results if r.row in wanted), key=lambda r: r.ratio)
        if not found:
            continue
        lines += [f"{family.title}, {family.what}", HEADING]
        lines += [row_line(r) for r in (found[:shown] if shown else found)]
        lines.append("")
        table += summary_lines(family, found)
    return [*lines, TABLE_HEADING, "|" + "---|" * 9, *table]


def machine_facts(roof: Roof) -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "machine": machine_name(),
        "date": str(datetime.date.today()),
        "commit": commit_name(),
        "torch": torch.__version__,
        "isa": os.environ.get("FASTCONV_ISA", "best"),
        "threads": roof.threads,
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
        and (not options.dtype or row.dtype in options.dtype)
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
            print(f"\r{number + 1}/{len(rows)} {row.layer:<60}", end="", file=sys.stderr)
    return results, machine_facts(roof)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pool_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="NAME",
        help=f"of {', '.join(FAMILIES)}; default: all",
    )  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--dtype", nargs="+", metavar="NAME", help="such as float32")
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
        stem = f"pool-{machine['machine']}-{machine['date']}-{machine['commit']}{isa}"
        path = HERE / "results" / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(r) for r in results]
    path.write_text(json.dumps({"machine": machine, "rows": rows}, separators=(",", ":")))
    table = text.index(TABLE_HEADING)
    body = ["# Pooling on CPU, torch's time / fastconv's", "", text[0], "", *text[table:], ""]
    path.with_suffix(".md").write_text("\n".join([*body, "```", *text[2:table], "```", ""]))
    print(f"record: {path}")


def load(paths: Iterable[Path]) -> tuple[list[Result], dict[str, object]]:
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
        command = [sys.executable, "-m", "bench.pool_table", *(arguments or sys.argv[1:])]
        return subprocess.run(command, env=os.environ | {"FASTCONV_ISA": options.isa}).returncode
    results, machine = load(options.show) if options.show else run(options)
    text = report(results, machine, options.family, 0 if options.all_rows else SHOWN)
    print("\n".join(text))
    if options.output is not None:
        keep(options.output, results, machine, report(results, machine, options.family, 0))
    return int(any(result.wrong for result in results))


if __name__ == "__main__":
    sys.exit(main())
