"""Check, then time: the rows of one family, or the cost of a call, until the time is spent."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import rivals
from bench.gpu import duels, machine, rows
from bench.gpu.timing import Timer, device_timer, host_timer, race
from bench.interleave import Arena, Contest, Runner, Timing

Record = dict[str, Any]
Keep = Callable[[Record], None]  # writes what is known so far

ROW_SECONDS, ROUNDS = 0.05, (11, 31)
CALLS_PER_GRAPH = 100
REHEARSAL = {"seconds": 0.0, "rounds": (2, 2)}


def _figures(timing: Timing) -> Record:
    """Return the figures of one runner, in microseconds."""
    return {
        "median_us": round(1e6 * timing.median, 3),
        "iqr_us": round(1e6 * timing.iqr, 3),
        "rounds": len(timing.seconds),
    }


def _words(error: Exception) -> str:
    """Return the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def measure(row: rows.Row, device: str, timer: Timer, roof: Record, **how: Any) -> Record:
    """Fill one row: an answer that is wrong has an error, not a time."""
    machine.set_tf32(False)
    torch.backends.cudnn.benchmark = False  # for the truth: a search costs more than it
    duel = row.duel(device)
    torch.backends.cudnn.benchmark = True
    machine.set_tf32(rows.MODES[row.mode][1])
    record: Record = {"row": row.name, "quick": row.is_quick}
    sound: dict[str, Runner] = {}
    for name, run in duel.runners.items():
        try:
            record[name] = {"error_norm": row.check(duel, name, run())}
            sound[name] = run
        except Exception as error:  # whatever a rival raises is its own
            record[name] = {"failed": _words(error)}
    duel.truth = torch.empty(0)
    timings = race(sound, timer, **how)
    for name, timing in timings.items():
        record[name] |= _figures(timing)
    if len(timings) == len(duels.NAMES):
        record["torch_over_fastconv"] = round(timings["torch"].over(timings[rivals.OURS]), 3)
    floors = {
        "compute": duel.flops / (1e12 * roof[row.mode]),
        "memory": duel.bytes / (1e12 * roof["copy"]),
    }
    record["bound"] = max(floors, key=floors.__getitem__)
    if rivals.OURS in timings:
        share = floors[record["bound"]] / timings[rivals.OURS].median
        record["percent_of_roof"] = round(100 * share, 1)
    return record


def run_rows(family: str, device: str, deadline: float, pattern: str, keep: Keep) -> Record:
    """Measure the rows that fit before the deadline, the most telling first."""
    rehearsed = device == "cpu"
    timer = host_timer if rehearsed else device_timer()
    planned = [row for row in rows.plan(family) if pattern in row.name]
    todo = list(rows.rehearsal(family)) if rehearsed else planned
    how = REHEARSAL if rehearsed else {"seconds": ROW_SECONDS, "rounds": ROUNDS}
    roof = machine.roof(device, timer)
    record: Record = {"roof_tflops_and_tb_s": roof, "planned": len(planned), "rows": []}
    record["clocks"] = [machine.state()]
    longest = 0.0
    for number, row in enumerate(todo):
        begin = time.monotonic()
        if begin + longest > deadline:
            break
        try:
            record["rows"].append(measure(row, device, timer, roof, **how))
        except Exception as error:  # out of memory, say: the other rows still count
            record["rows"].append({"row": row.name, "failed": _words(error)})
        if device == "cuda" and number % 16 == 15:
            gc.collect()
            torch.cuda.empty_cache()
            record["clocks"].append(machine.state())
            keep(record)
        longest = max(longest, min(time.monotonic() - begin, 3.0))
    record["clocks"].append(machine.state())
    record["left_out"] = [row.name for row in planned[len(record["rows"]) :]]
    failed = sum("failed" in part for row in record["rows"] for part in _parts(row))
    record["failed"] = failed
    return record


def _parts(row: Record) -> list[Record]:
    """Return a row and its runners' records."""
    return [row, *(row[name] for name in duels.NAMES if name in row)]


def _graph(run: Runner) -> Runner:
    """Capture calls into a CUDA graph; returns its replay."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        for _ in range(CALLS_PER_GRAPH):
            run()
    return graph.replay


def run_overhead(device: str, deadline: float, pattern: str, keep: Keep) -> Record:
    """Measure what a call costs the host (bench_overhead's doors), and the device in a graph."""
    from bench import bench_overhead as calls

    torch.backends.cudnn.benchmark = True
    machine.set_tf32(False)
    rehearsed = device == "cpu"
    record: Record = {"rows": [], "clocks": [machine.state()]}
    groups = [(op, mode) for op in ("conv2d", "max_pool2d") for mode in calls.MODES]
    groups = [group for group in groups if pattern in ", ".join(group)]
    record["planned"], timer = len(groups), host_timer if rehearsed else device_timer()
    how: Record = {"block": 1e-3, "rounds": (2, 2) if rehearsed else (21, 31), "budget": 1.0}
    for operation, mode in groups:
        if time.monotonic() + 2.0 > deadline:
            break
        row: Record = {"row": f"{operation}, {mode}"}
        with calls.MODES[mode]():
            with torch.device(device):
                contest = calls.make_contest(operation, mode)
            outcome = Arena(1.0).outcome(row["row"], lambda c=contest: c, **how)
            for door, result in outcome.items():
                bad = isinstance(result, Exception)
                row[door] = {"failed": _words(result)} if bad else _figures(result)
            if mode == "inference_mode" and not rehearsed:
                _time_graphs(contest, timer, row)
        record["rows"].append(row)
        keep(record)
    record["clocks"].append(machine.state())
    record["left_out"] = [", ".join(group) for group in groups[len(record["rows"]) :]]
    doors = (value for row in record["rows"] for value in row.values() if isinstance(value, dict))
    record["failed"] = sum("failed" in door for door in doors)
    return record


def _time_graphs(contest: Contest, timer: Timer, row: Record) -> None:
    """Add each door's time per call inside a CUDA graph: the device's share, no host in it."""
    for door, run in contest.runners.items():
        try:
            replay = _graph(run)
            timing = race({door: replay}, timer, seconds=ROW_SECONDS, rounds=ROUNDS)[door]
            row[door]["in_graph_us"] = round(1e6 * timing.median / CALLS_PER_GRAPH, 3)
        except Exception as error:  # a call that cannot be captured says so
            row[door]["in_graph"] = _words(error)
