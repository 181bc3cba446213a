"""Read a results file and print it as short tables, losses first."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

Row = dict
LOSS, WIN = "red", "green"
UNITS = {"gflop_s": "GFLOP/s", "gb_s": "GB/s"}


def _time(seconds: float) -> str:
    """Return a time in a unit that suits its size."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _spread(row: Row) -> str:
    """Return median and interquartile range in percent of it."""
    stats = row["stats"]
    return f"{_time(stats['median'])} ±{100 * stats['iqr'] / stats['median']:.0f}%"


def _groups(rows: list[Row], suite: str) -> dict[str, dict[str, Row]]:
    """Return the rows of all suites that begin with a word, by group and rival."""
    groups: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["extra_info"]["suite"].startswith(suite):
            groups[row["group"]][row["extra_info"]["rival"]] = row
    return groups


def speed_table(rows: list[Row], operation: str) -> Table | None:
    """Return the table of one operation, a line per group, worst ratio to a rival first."""
    groups = {name: group for name, group in _groups(rows, operation).items() if len(group) > 1}
    lines = []
    for name, group in groups.items():
        ours = group.pop("fastconv", None)
        if ours is None:
            continue
        ratios = {
            rival: row["extra_info"].get("times_baseline", float("nan"))
            for rival, row in group.items()
        }
        lines.append((min(ratios.values()), name.removeprefix(operation + " "), ours, ratios))
    if not lines:
        return None
    rivals = sorted(
        {rival for *_, ratios in lines for rival in ratios}, key="torch onnxruntime openvino".find
    )
    unit = lines[0][2]["extra_info"]["unit"]
    wins = sum(best >= 1 for best, *_ in lines)
    title = (
        f"{operation}: ahead of every rival in {wins} of {len(lines)} rows, losses first"
        " (under a rival: its time divided by fastconv's)"
    )
    table = Table("what", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("fastconv", UNITS[unit], "% of roof", *rivals):
        table.add_column(heading, justify="right", no_wrap=True)
    for best, name, ours, ratios in sorted(lines, key=lambda line: line[0]):
        info = ours["extra_info"]
        bound = "" if info["bound"] == "compute" else " mem"
        table.add_row(
            name,
            _spread(ours),
            f"{info[unit]:.3g}" if info[unit] < 100 else f"{info[unit]:.0f}",
            f"{info['percent_of_roof']:.0f}{bound}",
            *(f"{ratios[rival]:.2f}x" if rival in ratios else "" for rival in rivals),
            style=LOSS if best < 1 else WIN,
        )
    return table


def overhead_table(rows: list[Row]) -> Table | None:
    """Return the costs of a call: torch's in microseconds, ours as multiples of torch's."""
    groups = _groups(rows, "overhead")
    if not groups:
        return None
    doors = list(dict.fromkeys(door for group in groups.values() for door in group))
    title = "One call with next to nothing to do, one core (times torch's in brackets)"
    table = Table("call", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for door in doors:
        table.add_column(door, justify="right")
    for name, group in groups.items():
        cells = []
        for door in doors:
            row = group.get(door)
            text = _time(row["stats"]["median"]) if row else ""
            if row and door.startswith("fastconv"):
                ratio = row["extra_info"].get("times_baseline", float("nan"))
                text += f" [{LOSS if ratio > 1 else WIN}]({ratio:.2f}x)"
            cells.append(text)
        table.add_row(name.removeprefix("call "), *cells)
    return table


def cold_table(rows: list[Row]) -> Table | None:
    """Return the cold start: import beyond torch, and the first calls."""
    groups = _groups(rows, "cold start")
    if not groups:
        return None
    table = Table(title="Cold start, fresh processes", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("phase", "fastconv", "torch"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for name, group in groups.items():
        cells = [_spread(group[rival]) if rival in group else "" for rival in ("fastconv", "torch")]
        table.add_row(name.removeprefix("cold start, "), *cells)
    return table


def show(path: Path, console: Console | None = None) -> None:
    """Print the tables of a results file."""
    console = console or Console()
    if not console.is_terminal:  # a log has no width: keep each row on one line
        console = Console(width=140)
    report = json.loads(path.read_text())
    rows, machine = report["benchmarks"], report["machine_info"]
    roof = machine.get("roof")
    console.print(
        f"{machine['cpu'].get('brand_raw', machine['machine'])}, threads: {machine['threads']}"
    )
    if roof:
        console.print(
            f"roof: float32 {roof['float32_gflops']:.0f} GFLOP/s ({roof['float32_source']}),"
            f" bfloat16 {roof['bfloat16_gflops']:.0f} GFLOP/s ({roof['bfloat16_source']}),"
            f" copy {roof['copy_gb_s']:.1f} GB/s"
        )
    operations = sorted(
        {row["extra_info"]["suite"].split()[0] for row in rows if "unit" in row["extra_info"]}
    )
    tables = [speed_table(rows, operation) for operation in operations]
    for table in [*tables, overhead_table(rows), cold_table(rows)]:
        if table:
            console.print(table)
