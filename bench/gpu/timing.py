"""Time on the device: one call between two events, a cold L2, rivals in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from bench.interleave import Runner, Timing

Timer = Callable[[Runner], float]  # seconds of one call

# While the device idles this long, about 0.1 ms, the host queues the call: its launch is not timed.
_HEAD_START_CYCLES = 200_000
_FLUSH_OVER_L2 = 4
_WARM_CALLS = 3


def device_timer() -> Timer:
    """Return a timer that overwrites the L2 cache before each call."""
    l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 * 2**20
    other_data = torch.empty(_FLUSH_OVER_L2 * l2 // 4, dtype=torch.int32, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(run: Runner) -> float:
        other_data.zero_()
        torch.cuda._sleep(_HEAD_START_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    return seconds


def host_timer(run: Runner) -> float:
    """Time on the host: for rehearsals without a device, whose figures are thrown away."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def race(
    runners: Mapping[str, Runner], timer: Timer, *, seconds: float, rounds: tuple[int, int]
) -> dict[str, Timing]:
    """Time all runners in turn; who begins rotates from round to round.

    Args:
        runners: what to time, by name.
        timer: of one call.
        seconds: to spend on all of them together; the least number of rounds may exceed it.
        rounds: least and largest number of rounds.

    """
    for run in runners.values():
        for _ in range(_WARM_CALLS):  # cudnn.benchmark looks for its algorithm here
            run()
    taken: dict[str, list[float]] = {name: [] for name in runners}
    order, begin = list(runners), time.perf_counter()
    for number in range(rounds[1]):
        if number >= rounds[0] and time.perf_counter() - begin > seconds:
            break
        first = number % len(order)
        for name in order[first:] + order[:first]:
            taken[name].append(timer(runners[name]))
    return {name: Timing(tuple(values)) for name, values in taken.items()}
