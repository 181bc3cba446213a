"""What a call costs beside the work: a convolution and a pooling with next to nothing to do.

Each group is a mode (no gradient wanted, grad, no_grad, inference_mode, forward + backward) and
holds torch's doors and ours, timed in turn on one pinned core with one thread, in that thread's CPU
time; only the ratios travel from machine to machine. A module is divided by torch's module, all
else by torch's functional. The NumPy door is timed on the same problem; its whole call, kernel
included, bounds what the door adds, and an empty call through pybind11 shows the floor. Cold start
is measured in fresh processes: what `import fastconv` takes beyond torch, and the first call.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv
import fastconv.functional as FC
from bench.conftest import replay
from bench.interleave import Contest, Runner, Timing

try:
    from fastconv import _core
except ImportError:  # the compiled part is missing: its rows are left out
    _core = None

MODES: dict[str, Callable[[], AbstractContextManager]] = {
    "no grad needed": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": contextlib.nullcontext,
    "forward + backward": contextlib.nullcontext,
}
DOORS = (
    "torch functional",
    "torch module",
    "fastconv op",
    "fastconv functional",
    "fastconv module",
)
NUMPY_DOORS = ("torch functional", "fastconv functional")
CORE_DOORS = ("fastconv _core", "empty call")
COLD = ("torch", "fastconv")
BASELINE = {"fastconv module": "torch module", "fastconv": "torch"}
TIMING = {"block": 2e-3, "rounds": (31, 31), "clock": time.thread_time}

# Seconds to import a package after torch, and of the first and second call; printed as JSON.
COLD_PROGRAM = """
import json, sys, time
import torch
start = time.perf_counter()
if sys.argv[1] == "fastconv":
    import fastconv
    from fastconv.functional import conv2d
else:
    from torch.nn.functional import conv2d
imported = time.perf_counter()
x, w = torch.ones(1, 2, 4, 4), torch.ones(2, 2, 1, 1)
marks = [time.perf_counter()]
for _ in range(2):
    conv2d(x, w)
    marks.append(time.perf_counter())
print(json.dumps([imported - start, marks[1] - marks[0], marks[2] - marks[1]]))
"""


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Pin this thread to one core and let torch use one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cpus:
        os.sched_setaffinity(0, {max(cpus)})
    yield
    if cpus:
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)


def doors(operation: str) -> tuple[dict[str, Callable[[Tensor], Tensor]], list[Tensor]]:
    """Return the doors as functions of the input, and the parameters that may want gradients."""
    torch.manual_seed(0)
    if operation == "max_pool2d":
        ours, theirs = fastconv.MaxPool2d(1), nn.MaxPool2d(1)
        op = torch.ops.fastconv.max_pool2d.default
        return {
            "torch functional": lambda x: F.max_pool2d(x, 1),
            "torch module": theirs,
            "fastconv op": lambda x: op(x, (1, 1)),
            "fastconv functional": lambda x: FC.max_pool2d(x, 1),
            "fastconv module": ours,
        }, []
    theirs, ours = nn.Conv2d(2, 2, 1), fastconv.Conv2d(2, 2, 1)
    ours.weight, ours.bias = theirs.weight, theirs.bias
    w, b = theirs.weight, theirs.bias
    op = torch.ops.fastconv.conv2d.default
    return {
        "torch functional": lambda x: F.conv2d(x, w, b),
        "torch module": theirs,
        "fastconv op": lambda x: op(x, w, b),
        "fastconv functional": lambda x: FC.conv2d(x, w, b),
        "fastconv module": ours,
    }, [w, b]


def make_contest(operation: str, mode: str) -> Contest:
    """Build the doors' runners in one mode; the truth is torch's answer."""
    functions, parameters = doors(operation)
    differentiable = mode in ("grad", "forward + backward")
    x = torch.randn(1, 2, 4, 4, requires_grad=differentiable)
    for parameter in parameters:
        parameter.requires_grad_(differentiable)
    truth = functions["torch functional"](x).detach()
    inputs, ones = [x, *parameters], torch.ones_like(truth)

    def runner(function: Callable[[Tensor], Tensor]) -> Runner:
        if mode == "forward + backward":
            return lambda: torch.autograd.grad(function(x), inputs, ones)
        return lambda: function(x)

    expected = (
        torch.autograd.grad(functions["torch functional"](x), inputs, ones)
        if differentiable
        else ()
    )

    def check(door: str, answer: Any) -> None:
        pairs = (
            zip(answer, expected, strict=True) if isinstance(answer, tuple) else [(answer, truth)]
        )
        for actual, wanted in pairs:
            torch.testing.assert_close(actual.detach(), wanted, msg=lambda text: f"{door}: {text}")

    return Contest({name: runner(function) for name, function in functions.items()}, check)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", ["conv2d", "max_pool2d"])
def test_call(
    operation: str, mode: str, door: str, fill: Callable[..., Timing], benchmark: BenchmarkFixture
) -> None:
    """Time one call through each torch door."""
    benchmark.extra_info["suite"] = "overhead"
    group, baseline = f"call {operation}, {mode}", BASELINE.get(door, "torch functional")
    with MODES[mode]():
        fill(group, door, baseline, lambda: make_contest(operation, mode), **TIMING)


def make_numpy_contest(operation: str) -> Contest:
    """Build the NumPy doors' runners, without the core's where the compiled part is missing."""
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4), dtype=np.float32)
    w, b = np.ones((2, 2, 1, 1), np.float32), np.ones(2, np.float32)
    tensors = [torch.from_numpy(array) for array in (x, w, b)]
    if operation == "conv2d":
        args, theirs, torch_args = (x, w, b), F.conv2d, tensors
    else:
        args, theirs, torch_args = (x, 1), F.max_pool2d, (tensors[0], 1)
    ours = getattr(FC, operation)
    truth = theirs(*torch_args)
    runners: dict[str, Runner] = {
        "torch functional": lambda: theirs(*torch_args),
        "fastconv functional": lambda: ours(*args),
    }
    if _core:
        core = getattr(_core, operation)
        runners |= {"fastconv _core": lambda: core(*args), "empty call": _core.num_threads}

    def check(door: str, answer: Any) -> None:
        if door != "empty call":
            torch.testing.assert_close(torch.as_tensor(answer), truth)

    return Contest(runners, check)


@pytest.mark.parametrize("door", [*NUMPY_DOORS, *(CORE_DOORS if _core else ())])
@pytest.mark.parametrize("operation", ["conv2d", "max_pool2d"])
def test_numpy_call(
    operation: str, door: str, fill: Callable[..., Timing], benchmark: BenchmarkFixture
) -> None:
    """Time one call through each NumPy door; torch's function works on the same memory."""
    benchmark.extra_info["suite"] = "overhead"
    group = f"call {operation}, NumPy arrays"
    with torch.inference_mode():
        fill(group, door, "torch functional", lambda: make_numpy_contest(operation), **TIMING)


@pytest.fixture(scope="module")
def cold_starts(pytestconfig: pytest.Config) -> dict[str, list[list[float]]]:
    """Start fresh processes in turn; returns the triples of COLD_PROGRAM by package."""
    rounds = (
        1
        if pytestconfig.getoption("benchmark_disable")
        else 5
        if pytestconfig.getoption("quick")
        else 11
    )
    found: dict[str, list[list[float]]] = {name: [] for name in COLD}
    root = os.path.dirname(os.path.dirname(os.path.abspath(fastconv.__file__)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    for number in range(rounds + 1):
        for name in COLD:
            command = [sys.executable, "-c", COLD_PROGRAM, name]
            output = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            if number:  # the first round fills the disk cache
                found[name].append(json.loads(output.stdout.splitlines()[-1]))
    return found


@pytest.mark.parametrize("package", COLD)
@pytest.mark.parametrize("phase", ["import after torch", "first call", "second call"])
def test_cold_start(
    phase: str,
    package: str,
    cold_starts: dict[str, list[list[float]]],
    benchmark: BenchmarkFixture,
) -> None:
    """Report one phase of the cold start, measured in fresh processes."""
    column = ("import after torch", "first call", "second call").index(phase)
    timing = Timing(tuple(triple[column] for triple in cold_starts[package]))
    benchmark.group = f"cold start, {phase}"
    benchmark.extra_info |= {"suite": "cold start", "rival": package}
    replay(benchmark, timing)
