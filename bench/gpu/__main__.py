"""The parts of bench/gpu.sh that are Python: `python -m bench.gpu --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from bench.gpu import bench, machine, report, rows, small_calls


def _keep(path: Path, record: dict) -> None:
    """Write a record whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=1))
    os.replace(fresh, path)


def main() -> int:
    """Run one part, or report on all; returns 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("part", choices=["check", "sanitize", "bench", "report"])
    parser.add_argument("family", nargs="?", choices=[*rows.FAMILIES, "overhead"])
    parser.add_argument("--work", type=Path, help="where parts leave their records")
    parser.add_argument("--out", type=Path, help="where the report goes")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-k", default="", help="only rows with this in their name")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    deadline = time.monotonic() + options.seconds
    if options.part == "report":
        record = report.collect(options.work, device)
        report.show(record)
        if options.dry_run or "gpu" not in record["machine"]:
            print(
                "dry run: nothing is recorded" if options.dry_run else "no GPU: nothing is recorded"
            )
        else:
            print(f"report: {report.write(record, options.out)}.json, .md")
        return 0
    if not options.dry_run:
        machine.require_device()
    if options.part == "sanitize":
        small_calls.run_all(device, options.seconds)
    if options.part == "bench":
        path = options.work / f"bench-{options.family}.json"

        def keep(record: dict) -> None:
            _keep(path, record)

        if options.family == "overhead":
            record = bench.run_overhead(device, deadline, options.k, keep)
        else:
            record = bench.run_rows(options.family, device, deadline, options.k, keep)
        keep(record)
        return int(record["failed"] > 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
