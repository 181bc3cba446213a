"""The pool table: torch against fastconv on the poolings of well-known networks.

python -m bench.pool_table --family max --batch 1
python -m bench.pool_table --isa avx2 -k vgg16 --all-rows
python -m bench.pool_table --output              # everything, kept in bench/results
python -m bench.pool_table --show a.json b.json

GB/s are the bytes that a call must move, over its time; percentages are of a copy's speed, and
`large` marks the rows that no cache holds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.pool_race import Result, measure
from bench.pool_shapes import FAMILIES, Family
from bench.table import Table, against, geometric_mean

LEAST_OF_COPY = 70.0  # percent, for large rows
HEADING = (
    f"{'ratio':>7} {'torch ms':>9} {'ours ms':>9} {'GB/s':>6} {'% copy':>7}  row (worst first)"
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


def row_lines(family: Family, results: Sequence[Result], shown: int) -> list[str]:
    """Return the rows of a family, the worst first."""
    found = sorted(results, key=lambda r: r.ratio)
    chosen = found[:shown] if shown else found
    return [f"{family.title}, {family.what}", HEADING, *map(row_line, chosen)]


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
        share = against(min(shares), LEAST_OF_COPY if mean else None, 0) if shares else ""
        below = sum(ratio < least for ratio in ratios) if least else ""
        average = against(geometric_mean(ratios), mean)
        lines.append(
            f"| {family.title} | {layout} | {len(chosen)} | {average}"
            f" | {against(min(ratios), least)} | {below} | {len(shares)} | {share}"
            f" | {worst.layer}, batch {worst.batch}, {worst.dtype} |"
        )
    return lines


TABLE = Table(
    name="pool",
    title="Pooling on CPU, torch's time / fastconv's",
    description=__doc__,
    families=FAMILIES,
    default=list(FAMILIES),
    measure=measure,
    result=Result,
    facts=lambda roof: {},
    row_lines=row_lines,
    summary=summary_lines,
    heading=(
        "| family | layout | rows | geomean | least | rows below | large rows | % of copy, least |"
        " worst row |"
    ),
)

if __name__ == "__main__":
    sys.exit(TABLE.main())
