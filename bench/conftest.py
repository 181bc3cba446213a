"""Options and fixtures of the benches: where rivals meet, the roof, how rows are filled."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import fastconv
from bench.interleave import Arena, Contest, Replay, Timing, keep_memory
from bench.roofline import Roof, measure

REPLAY = Replay()
KEPT, LOAD = pytest.StashKey[bool](), pytest.StashKey[float]()
ROOF = pytest.StashKey[Roof]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benches."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group = parser.getgroup("fastconv benches")
    group.addoption("--quick", action="store_true", help="the short subset: a few minutes")
    group.addoption("--threads", type=int, default=cpus, help="threads of every rival")
    group.addoption("--budget", type=float, default=2.0, help="seconds for one group of rivals")


def pytest_configure(config: pytest.Config) -> None:
    """Collect bench files, give every rival the same threads and the same memory policy."""
    config.addinivalue_line("python_files", "bench_*.py")
    torch.set_num_threads(config.getoption("threads"))
    config.stash[KEPT] = keep_memory()
    config.stash[LOAD] = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pytest-benchmark read the interleaved times instead of a clock."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=REPLAY))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Put the roof and the versions next to the times; the host's name is nobody's business."""
    machine_info.pop("node", None)
    machine_info["torch"] = torch.__version__
    with contextlib.redirect_stdout(io.StringIO()):
        machine_info["fastconv"] = fastconv.show_config()
    machine_info["threads"] = config.getoption("threads")
    machine_info["load_average"] = config.stash[LOAD]
    machine_info["memory_kept"] = config.stash[KEPT]
    if ROOF in config.stash:
        machine_info["roof"] = config.stash[ROOF].as_dict()


@dataclass(frozen=True)
class Work:
    """What one call has to do at least."""

    flops: float
    bytes: float
    dtype: torch.dtype


@pytest.fixture(scope="session")
def roof(pytestconfig: pytest.Config) -> Roof:
    """Return the roofs of this machine, measured once per session."""
    if ROOF not in pytestconfig.stash:
        pytestconfig.stash[ROOF] = measure()
    return pytestconfig.stash[ROOF]


@pytest.fixture(scope="session")
def arena(pytestconfig: pytest.Config) -> Arena:
    """Return where contests are run; with --benchmark-disable only answers are checked."""
    return Arena(pytestconfig.getoption("budget"))


def replay(benchmark: BenchmarkFixture, timing: Timing) -> None:
    """Fill the row of a test with times that were measured before."""
    REPLAY.load(timing.seconds)
    benchmark.pedantic(lambda: None, rounds=len(timing.seconds))


@pytest.fixture
def fill(benchmark: BenchmarkFixture, arena: Arena) -> Callable[..., Timing]:
    """Return a function that fills this test's row from the race of its group."""

    def fill_row(
        group: str, rival: str, baseline: str, build: Callable[[], Contest], **how: Any
    ) -> Timing:
        """Run the group's race unless it has been run, and hand over this rival's times.

        Args:
            group: the group's name.
            rival: whose row this is.
            baseline: the rival whose time this one's is divided by, round by round.
            build: makes the contest; called once per group.
            how: passed to `race`.

        """
        benchmark.group = group
        if benchmark.disabled:
            how = {**how, "budget": 0.0, "rounds": (1, 1)}
        outcome = arena.outcome(group, build, **how)
        timing = outcome[rival]
        if isinstance(timing, Exception):
            benchmark.has_error = True  # no row is written
            benchmark.skipped = True
            raise timing
        benchmark.extra_info |= {"rival": rival, "loops": timing.loops, "baseline": baseline}
        base = outcome.get(baseline)
        if isinstance(base, Timing):
            benchmark.extra_info["times_baseline"] = timing.over(base)
        replay(benchmark, timing)
        return timing

    return fill_row


@pytest.fixture
def rate(benchmark: BenchmarkFixture, roof: Roof) -> Callable[[Timing, Work], None]:
    """Return a function that notes GFLOP/s, GB/s and the percentage of the roof beside a time."""

    def note(timing: Timing, work: Work) -> None:
        least, bound = roof.seconds(work.flops, work.bytes, work.dtype)
        benchmark.extra_info |= {
            "gflop_s": 1e-9 * work.flops / timing.median,
            "gb_s": 1e-9 * work.bytes / timing.median,
            "percent_of_roof": 100 * least / timing.median,
            "bound": bound,
        }

    return note
