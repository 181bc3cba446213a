"""What the tables of operations share: the command line, the run, records and reports in files."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.interleave import keep_memory
from bench.roofline import Roof
from bench.roofline import measure as measure_roof
from bench.run import HERE, commit_name, machine_name
from bench.shapes import BATCHES, LAYOUTS

ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "neon")
SHOWN = 8  # of the rows of a family

Facts = dict[str, object]


def geometric_mean(values: Iterable[float]) -> float:
    """Return the mean of ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def against(value: float, target: float | None, digits: int = 2) -> str:
    """Return a figure and, where there is one, what was to be reached."""
    if target is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} {'>=' if value >= target else '< '} {target:g}"


@dataclass(frozen=True)
class Table:
    """A table of rows by families. A row has what, layer, batch, dtype and layout; a result `row`
    and `wrong`.
    """

    name: str  # of the records
    title: str
    description: str
    families: Mapping[str, Any]
    default: Sequence[str]  # families
    measure: Callable[[Any, float, Roof], Any]
    result: Callable[..., Any]  # from a record's row
    facts: Callable[[Roof], Facts]  # what the figures depend on, beside the machine
    # The rows of a family's results, and its lines of the family table
    row_lines: Callable[[Any, Sequence[Any], int], list[str]]
    summary: Callable[[Any, Sequence[Any]], list[str]]
    heading: str  # of the family table, in Markdown

    def report(
        self, results: Sequence[Any], names: Sequence[str], shown: int
    ) -> tuple[list[str], list[str]]:
        """Return the rows family by family, after wrong answers; and the family table."""
        lines = [f"WRONG {r.row}: {r.wrong}" for r in results if r.wrong]
        table = [self.heading, "|" + "---|" * (self.heading.count("|") - 1)]
        for name in names:
            family = self.families[name]
            wanted = set(family.rows())
            found = [r for r in results if r.row in wanted]
            if found:
                lines += [*self.row_lines(family, found, shown), ""]
                table += self.summary(family, found)
        return lines, table

    def machine_facts(self, roof: Roof) -> Facts:
        """Return what the figures depend on."""
        return {
            "machine": machine_name(),
            "date": str(datetime.date.today()),
            "commit": commit_name(),
            "torch": torch.__version__,
            "isa": os.environ.get("FASTCONV_ISA", "best"),
            "threads": roof.threads,
            **self.facts(roof),
            "copy_gb_s": round(roof.copy_gb_s, 1),
        }

    def chosen_rows(self, options: argparse.Namespace) -> list[Any]:
        """Return the rows of the chosen families, each once."""
        rows = dict.fromkeys(row for name in options.family for row in self.families[name].rows())
        return [
            row
            for row in rows
            if row.batch in options.batch
            and row.layout in options.layout
            and (not options.dtype or row.dtype in options.dtype)
            and (not options.k or options.k in row.layer)
        ]

    def run(self, options: argparse.Namespace) -> tuple[list[Any], Facts]:
        """Measure all chosen rows; rows beyond --seconds are left out and said to be."""
        torch.set_num_threads(options.threads)
        keep_memory()
        roof = measure_roof()
        began = time.perf_counter()
        rows, results = self.chosen_rows(options), []
        for number, row in enumerate(rows):
            if options.seconds and time.perf_counter() - began > options.seconds:
                print(f"out of time: {len(rows) - number} of {len(rows)} rows left out")
                break
            results.append(self.measure(row, options.budget, roof))
            if sys.stderr.isatty():
                print(f"\r{number + 1}/{len(rows)} {row.layer:<60}", end="", file=sys.stderr)
        return results, self.machine_facts(roof)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Read the command line."""
        parser = argparse.ArgumentParser(
            prog=f"python -m bench.{self.name}_table",
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        names = ", ".join(self.families)
        default = "all" if len(self.default) == len(self.families) else "those with a target"
        parser.add_argument(
            "--family", nargs="+", choices=list(self.families), default=list(self.default),
            metavar="NAME", help=f"of {names}; default: {default}",
        )  # fmt: skip
        parser.add_argument("--batch", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
        parser.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
        parser.add_argument("--dtype", nargs="+", metavar="NAME", help="such as float32")
        parser.add_argument("-k", metavar="TEXT", help="rows whose layer holds this, such as vgg16")
        parser.add_argument("--isa", choices=ISAS, help="instruction set that fastconv is held to")
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--budget", type=float, default=0.15, help="seconds per row")
        parser.add_argument("--seconds", type=float, help="begin no row after so many seconds")
        parser.add_argument("--all-rows", action="store_true", help="print every row")
        parser.add_argument(
            "--output", type=Path, nargs="?", const=Path(), metavar="FILE",
            help="keep the record (.json) and the report (.md); default place: bench/results",
        )  # fmt: skip
        parser.add_argument(
            "--show", type=Path, nargs="+", metavar="FILE",
            help="report records together, run nothing; of a row in several, the last counts",
        )  # fmt: skip
        return parser.parse_args(arguments)

    def keep(self, path: Path, results: Sequence[Any], machine: Facts, first: str) -> None:
        """Write the record and, beside it, the report of every row."""
        if path == Path():
            isa = "" if machine["isa"] == "best" else f"-{machine['isa']}"
            stem = f"{self.name}-{machine['machine']}-{machine['date']}-{machine['commit']}{isa}"
            path = HERE / "results" / f"{stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(r) for r in results]
        path.write_text(json.dumps({"machine": machine, "rows": rows}, separators=(",", ":")))
        lines, table = self.report(results, list(self.families), 0)
        body = [f"# {self.title}", "", first, "", *table, "", "```", *lines, "```", ""]
        path.with_suffix(".md").write_text("\n".join(body))
        print(f"record: {path}")

    def load(self, paths: Iterable[Path]) -> tuple[list[Any], Facts]:
        """Read records; of a row in several, the last counts."""
        rows: dict[Any, Any] = {}
        machine: Facts = {}
        for path in paths:
            record = json.loads(path.read_text())
            machine = record["machine"]
            rows |= {result.row: result for result in (self.result(**r) for r in record["rows"])}
        return list(rows.values()), machine

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run or show; returns 1 where an answer was wrong, whatever the times."""
        options = self.parse(arguments)
        if options.isa and os.environ.get("FASTCONV_ISA") != options.isa:  # read when it is loaded
            command = [sys.executable, "-m", f"bench.{self.name}_table"]
            command += sys.argv[1:] if arguments is None else arguments
            environment = os.environ | {"FASTCONV_ISA": options.isa}
            return subprocess.run(command, env=environment).returncode
        results, machine = self.load(options.show) if options.show else self.run(options)
        first = ", ".join(f"{name} {value}" for name, value in machine.items())
        shown = 0 if options.all_rows else SHOWN
        lines, table = self.report(results, options.family, shown)
        print("\n".join([first, "", *lines, *table]))
        if options.output is not None:
            self.keep(options.output, results, machine, first)
        return int(any(result.wrong for result in results))
