"""The conv2d table: torch against fastconv on every convolution of five networks.

python -m bench.conv2d_table --family 3x3 --batch 1
python -m bench.conv2d_table --isa avx2 --family grouped --all-rows
python -m bench.conv2d_table --output            # everything, kept in bench/results
python -m bench.conv2d_table --show a.json b.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import fastconv
from bench.conv2d_race import Result, measure
from bench.conv2d_rows import EVERY_LAYOUT, FAMILIES, Family
from bench.table import Table, against, geometric_mean

HEADING = (
    f"{'ratio':>7} {'torch ms':>9} {'ours ms':>9} {'GFLOP/s':>8} {'% roof':>7} {'L2 error':>9}"
    "  row (worst first)"
)


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


def row_lines(family: Family, results: Sequence[Result], shown: int) -> list[str]:
    """Return the rows of a family, the worst first."""
    found = sorted(results, key=lambda r: r.ratios[family.side])
    lines = [row_line(r, family.side) for r in (found[:shown] if shown else found)]
    return [f"{family.title}, {family.what}, {family.dtype}, {family.side}", HEADING, *lines]


def summary_lines(family: Family, results: Sequence[Result]) -> list[str]:
    """Return a line of the family table per target: what was to be reached and what was."""
    lines = []
    for layout, targets in (family.targets or {EVERY_LAYOUT: (None, None)}).items():
        chosen = [r for r in results if layout in (EVERY_LAYOUT, r.layout)]
        if not chosen:
            continue
        mean, least = targets
        ratios = [r.ratios[family.side] for r in chosen]
        worst = min(chosen, key=lambda r: r.ratios[family.side])
        below = sum(ratio < (least or 0.0) for ratio in ratios)
        lines.append(
            f"| {family.title} | {layout or 'both'} | {len(ratios)}"
            f" | {against(geometric_mean(ratios), mean)} | {against(min(ratios), least)}"
            f" | {below} | {worst.layer}, batch {worst.batch}, {worst.layout} |"
        )
    return lines


TABLE = Table(
    name="conv2d",
    title="conv2d on CPU, torch's time / fastconv's",
    description=__doc__,
    families=FAMILIES,
    default=[name for name, family in FAMILIES.items() if family.targets],
    measure=measure,
    result=Result,
    facts=lambda roof: {
        "frozen": hasattr(fastconv, "freeze"),
        "float32_gflops": round(roof.float32_gflops),
        "bfloat16_gflops": round(roof.bfloat16_gflops),
    },
    row_lines=row_lines,
    summary=summary_lines,
    heading="| family | layout | rows | geomean | least | rows below | worst row |",
)

if __name__ == "__main__":
    sys.exit(TABLE.main())
