"""Check, then time in turn: how two programs are compared on a machine that is never quiet.

All rivals of a group run in one process on the same inputs. A round times one block of calls of
each, and the order rotates from round to round, so that a change of clock or a neighbour's burst
hits all alike. Times are medians with the interquartile range; ratios are taken within a round
first, then their median. A rival whose answer is wrong does not run: it has an error, not a time.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Runner = Callable[[], object]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # <malloc.h>
_WARM_CALL_LIMIT = 0.02  # seconds; longer calls warm their own caches


def keep_memory() -> bool:
    """Make malloc keep freed memory, for every rival alike; returns whether the C library took it.

    By default glibc maps large results and unmaps them when they are freed: for outputs over 32 MiB
    the page faults take most of the time, and what is measured is the kernel's memory manager.
    """
    largest = 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    settings = ((_M_MMAP_THRESHOLD, largest), (_M_TRIM_THRESHOLD, largest), (_M_MMAP_MAX, 0))
    # Some versions of glibc refuse a large mmap threshold; no mmap at all says the same.
    return [bool(mallopt(name, value)) for name, value in settings][1:] == [True, True]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry per round; each is the mean over a block of `loops` calls."""

    seconds: tuple[float, ...]
    loops: int = 1

    @property
    def median(self) -> float:
        """Median over the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def iqr(self) -> float:
        """Distance of the quartiles, in seconds."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low

    def over(self, other: Timing) -> float:
        """Return this time divided by the other's: the median of the ratios of each round."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def _block(run: Runner, loops: int, clock: Callable[[], float]) -> float:
    """Return the seconds that `loops` calls took."""
    repeat = range(loops)
    start = clock()
    for _ in repeat:
        run()
    return clock() - start


def _calibrate(run: Runner, block: float, clock: Callable[[], float]) -> tuple[int, float]:
    """Return how many calls fill `block` seconds, and what one call takes; warms up on the way."""
    loops, seconds = 1, _block(run, 1, clock)
    seconds = min(seconds, _block(run, 1, clock))
    while seconds < block / 2:
        loops *= 2
        seconds = _block(run, loops, clock)
    each = seconds / loops
    return max(1, round(block / each)), each


def race(
    runners: Mapping[str, Runner],
    *,
    budget: float = 2.0,
    block: float = 2e-3,
    rounds: tuple[int, int] = (7, 51),
    pause: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time all runners in turn.

    Args:
        runners: what to time, by name.
        budget: seconds to spend on all of them together; the least number of rounds may exceed it.
        block: seconds that one timing should take at least: short calls are repeated.
        rounds: least and largest number of rounds.
        pause: seconds to sleep before each block, where runners have thread pools of their own: a
            pool's workers spin for about a millisecond after their last job and would steal the
            next runner's cores.
        clock: wall time; or `time.thread_time` where the calling thread does all the work, so that
            a neighbour on its core is not charged to the runner.

    Returns:
        The timings, by name.

    """
    if not runners:
        return {}
    plan = {name: _calibrate(run, block, clock) for name, run in runners.items()}
    round_seconds = sum(pause + loops * each for loops, each in plan.values())
    count = min(max(int(budget / round_seconds), rounds[0]), rounds[1])
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners)
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(count):
            first = number % len(order)
            for name in order[first:] + order[:first]:
                run, (loops, each) = runners[name], plan[name]
                if pause:
                    time.sleep(pause)
                if each < _WARM_CALL_LIMIT:
                    run()
                seconds[name].append(_block(run, loops, clock) / loops)
    finally:
        if enabled:
            gc.enable()
    return {name: Timing(tuple(values), plan[name][0]) for name, values in seconds.items()}


@dataclass
class Contest:
    """The runners of one group and how their answers are checked."""

    runners: Mapping[str, Runner]
    check: Callable[[str, object], None]  # (name, answer): raises where the answer is wrong
    pause: float = 0.0


@dataclass
class Arena:
    """Runs each contest once and keeps the last outcome: the rows of a group are separate tests."""

    budget: float
    _group: str = ""
    _outcome: dict[str, Timing | Exception] = field(default_factory=dict)

    def outcome(
        self, group: str, build: Callable[[], Contest], **how: Any
    ) -> Mapping[str, Timing | Exception]:
        """Return a timing or an error for every runner of the group, from one race."""
        if group != self._group:
            self._group, self._outcome = group, self._run(build(), how)
        return self._outcome

    def _run(self, contest: Contest, how: dict) -> dict[str, Timing | Exception]:
        errors: dict[str, Exception] = {}
        for name, run in contest.runners.items():
            try:
                contest.check(name, run())
            except Exception as error:  # whatever a rival raises is its own row's error
                errors[name] = error
        sound = {name: run for name, run in contest.runners.items() if name not in errors}
        return {**race(sound, **{"budget": self.budget, "pause": contest.pause, **how}), **errors}


class Replay:
    """A timer that returns what was measured before, for pytest-benchmark to keep statistics of.

    `benchmark.pedantic` reads the timer before and after each round: the difference of each pair of
    readings is one recorded time.
    """

    __name__ = "interleaved"

    def __init__(self) -> None:
        """Start empty."""
        self._readings: list[float] = []

    def load(self, seconds: tuple[float, ...]) -> None:
        """Queue the times of the rounds to come."""
        self._readings = [reading for value in reversed(seconds) for reading in (value, 0.0)]

    def __call__(self) -> float:
        """Return the next reading."""
        return self._readings.pop()
