"""Run the benches and print a short table; the full record is written to bench/results.

python -m bench --quick
python -m bench --only overhead
python -m bench --show bench/results/<file>.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report

HERE = Path(__file__).parent
SUITES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def machine_name() -> str:
    """Return the processor's name and the number of CPUs as a file name; never the host's."""
    from cpuinfo import get_cpu_info

    brand = get_cpu_info().get("brand_raw") or platform.machine()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    plain = re.sub(r"\((r|tm)\)|cpu|processor|@.*", "", brand.lower())
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_") + f"_{cpus}c"


def commit_name() -> str:
    """Return the short hash of the commit that is measured, marked where files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def keep_statistics(path: Path) -> None:
    """Drop the single rounds from a record: medians and spreads are what is compared later."""
    record = json.loads(path.read_text())
    for row in record["benchmarks"]:
        row["stats"].pop("data", None)
    path.write_text(json.dumps(record, separators=(",", ":")))


def main(arguments: list[str] | None = None) -> int:
    """Run or show; returns pytest's status: not 0 where an answer was wrong, whatever the times."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the short subset: a few minutes")
    parser.add_argument(
        "--only", nargs="+", choices=SUITES, default=SUITES, metavar="SUITE", help=", ".join(SUITES)
    )
    parser.add_argument("--threads", type=int, help="threads of every rival; default: all CPUs")
    parser.add_argument("--budget", type=float, help="seconds for one group of rivals; default: 2")
    parser.add_argument(
        "-k", metavar="EXPRESSION", help="pytest's selection, such as 'resnet50 and nchw'"
    )
    parser.add_argument(
        "--output", type=Path, help="the record; default: a new file in bench/results"
    )
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print an earlier record, run nothing"
    )
    options = parser.parse_args(arguments)
    for name in ("threads", "budget"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"argument --{name}: expected a number above 0, got {value}")
    if options.show and not options.show.is_file():
        parser.error(f"argument --show: no such file: {options.show}")
    if options.show:
        report.show(options.show)
        return 0
    path = (
        options.output
        or HERE / "results" / f"{machine_name()}-{datetime.date.today()}-{commit_name()}.json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    command = [str(HERE / f"bench_{suite}.py") for suite in options.only]
    command += ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "--benchmark-quiet"]
    command += [f"--benchmark-json={path}"] + ["--quick"] * options.quick
    command += [
        f"--{name}={value}" for name in ("threads", "budget") if (value := getattr(options, name))
    ]
    command += ["-k", options.k] if options.k else []
    status = pytest.main(command)
    if path.exists() and path.stat().st_size:
        keep_statistics(path)
        report.show(path)
        print(f"record: {path}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
