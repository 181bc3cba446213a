"""One row of the conv2d table: build torch's and fastconv's calls, check the answers, time them.

The truth is float64 where that is affordable (images of a batch are independent: one of them is
enough for what does not sum over the batch); where it is not, torch's own answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv
import fastconv.functional as FC
from bench.conv2d_rows import Row
from bench.interleave import Timing, race
from bench.roofline import Roof
from bench.shapes import CONV_LAYERS, LAYOUTS, ConvLayer
from fastconv.testing import relative_bound, relative_error

TRUTH_FLOPS = 1.2e9  # a float64 convolution of torch's runs at some 30 GFLOP/s
CALL_FLOPS = 5e8  # below, the cost of a module's call shows in the ratio
ROUNDS = (3, 31)
SLOW_SECONDS = 0.3

Answer = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Problem:
    """The tensors of a row, and what the row has to do at least."""

    layer: ConvLayer
    x: Tensor
    w: Tensor
    b: Tensor | None
    grad: Tensor | None
    flops: float
    bytes: float

    def image(self) -> Problem:
        """Return the first image alone."""
        grad = None if self.grad is None else self.grad[:1]
        return Problem(self.layer, self.x[:1], self.w, self.b, grad, self.flops, self.bytes)

    def wide(self) -> Problem:
        """Return the same in float64, contiguous."""
        each = (
            None if tensor is None else tensor.double().contiguous()
            for tensor in (self.x, self.w, self.b, self.grad)
        )
        return Problem(self.layer, *each, self.flops, self.bytes)


@dataclass(frozen=True)
class Result:
    """What is known of a row: milliseconds and ratios (torch's time over ours) by side."""

    what: str
    layer: str
    batch: int
    dtype: str
    layout: str
    milliseconds: dict[str, float]
    ratios: dict[str, float]
    gflop_s: dict[str, float]
    percent_of_roof: dict[str, float]
    bound: str
    errors: dict[str, float]  # relative L2 against float64; empty where that was not affordable
    wrong: str = ""

    @property
    def row(self) -> Row:
        """Return the row that was measured."""
        return Row(self.what, self.layer, self.batch, self.dtype, self.layout)


def make_problem(row: Row) -> Problem:
    """Build the inputs: normal data, weights that keep the variance; a bias in every backward."""
    layer, dtype = CONV_LAYERS[row.layer], row.torch_dtype
    x, w, b = layer.tensors(row.batch, dtype, row.layout)
    flops, moved = layer.flops(row.batch), layer.bytes(row.batch, dtype)
    if row.what == "forward":
        return Problem(layer, x, w, b, None, flops, moved)
    shape = (row.batch, layer.K, layer.out_size, layer.out_size)
    grad = torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[row.layout])
    if row.what == "backward":  # also reads input and weight again, each once
        again = dtype.itemsize * (x.numel() + w.numel())
        b = torch.randn(layer.K).to(dtype)
        return Problem(layer, x, w, b, grad, 2 * flops, moved + again)
    return Problem(layer, x, w, None, grad, flops, moved)


def _module(module_class: type[torch.nn.Conv2d], problem: Problem) -> torch.nn.Module:
    """Return the layer as a module in inference, its weights laid out as the row's."""
    layer, (x, w, b) = problem.layer, (problem.x, problem.w, problem.b)
    module = module_class(
        layer.C, layer.K, layer.window, bias=b is not None, dtype=x.dtype, **layer.options
    ).eval()
    module.weight = torch.nn.Parameter(w, requires_grad=False)
    if b is not None:
        module.bias = torch.nn.Parameter(b, requires_grad=False)
    return module


def _forward(function: Callable[..., Tensor], problem: Problem) -> Answer:
    def run() -> Sequence[Tensor]:
        with torch.inference_mode():
            return (function(problem.x, problem.w, problem.b, **problem.layer.options),)

    return run


def _module_forward(module: torch.nn.Module, problem: Problem) -> Answer:
    def run() -> Sequence[Tensor]:
        with torch.inference_mode():
            return (module(problem.x),)

    return run


def _backward(function: Callable[..., Tensor], problem: Problem) -> Answer:
    """Return the gradients of a forward pass that has been run, through autograd."""
    leaves = [t.detach().requires_grad_() for t in (problem.x, problem.w, problem.b)]
    output = function(*leaves, **problem.layer.options)
    return lambda: torch.autograd.grad(output, leaves, problem.grad, retain_graph=True)


def _torch_gradient(problem: Problem, mask: list[bool]) -> Answer:
    layer = problem.layer
    fixed = ([layer.stride] * 2, [layer.padding] * 2, [1, 1], False, [0, 0], layer.groups, mask)

    def run() -> Sequence[Tensor]:
        with torch.inference_mode():
            every = torch.ops.aten.convolution_backward(
                problem.grad, problem.x, problem.w, None, *fixed
            )
            return (every[mask.index(True)],)

    return run


def _fastconv_gradient(problem: Problem, mask: list[bool]) -> Answer:
    name = "conv2d_input_grad" if mask[0] else "conv2d_weight_grad"
    op = getattr(torch.ops.fastconv, name)
    other, size = (problem.w, problem.x.shape) if mask[0] else (problem.x, problem.w.shape)

    def run() -> Sequence[Tensor]:
        with torch.inference_mode():
            return (op(problem.grad, other, size, **problem.layer.options),)

    return run


def make_runners(row: Row, problem: Problem) -> dict[str, Answer]:
    """Return the calls by name; those of torch begin with `torch`."""
    if row.what == "forward":
        freeze = getattr(fastconv, "freeze", lambda module: module)
        frozen = freeze(_module(fastconv.Conv2d, problem))
        runners = {
            "torch": _module_forward(_module(torch.nn.Conv2d, problem), problem),
            "frozen": _module_forward(frozen, problem),
            "functional": _forward(FC.conv2d, problem),
        }
        if problem.flops < CALL_FLOPS and row.dtype == "float32":
            runners["torch functional"] = _forward(F.conv2d, problem)
        return runners
    if row.what == "backward":
        return {"torch": _backward(F.conv2d, problem), "functional": _backward(FC.conv2d, problem)}
    mask = [row.what == "input_grad", row.what == "weight_grad", False]
    return {
        "torch": _torch_gradient(problem, mask),
        "functional": _fastconv_gradient(problem, mask),
    }


def _sums(row: Row, problem: Problem) -> int:
    """Return how many products the longest sum of the row has."""
    layer = problem.layer
    of_images = {
        "forward": layer.reduction_length,
        "input_grad": layer.K // layer.groups * layer.window**2,
    }
    return of_images.get(row.what, row.batch * layer.out_size**2)


def _truth(row: Row, problem: Problem) -> Sequence[Tensor] | None:
    """Return the float64 answer, of the first image where images are independent, if affordable."""
    if row.what in ("forward", "input_grad"):
        problem, flops = problem.image(), problem.flops / row.batch
    else:
        flops = problem.flops
    if flops > TRUTH_FLOPS:
        return None
    wide = problem.wide()
    return {
        "forward": lambda: _forward(F.conv2d, wide)(),
        "backward": lambda: _backward(F.conv2d, wide)(),
        "input_grad": lambda: _torch_gradient(wide, [True, False, False])(),
        "weight_grad": lambda: _torch_gradient(wide, [False, True, False])(),
    }[row.what]()


def _distance(answer: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Return the largest relative L2 error; the truth may hold the first image alone."""
    return max(
        relative_error(mine[: len(true)], true) for mine, true in zip(answer, truth, strict=True)
    )


def check(row: Row, problem: Problem, runners: dict[str, Answer]) -> tuple[dict[str, float], str]:
    """Return the errors against float64 and, if an answer of ours is wrong, a sentence on it."""
    bound = relative_bound(row.dtype, _sums(row, problem))
    truth, torchs = _truth(row, problem), runners["torch"]()
    errors: dict[str, float] = {}
    wrong = ""
    for name, run in runners.items():
        answer = torchs if name == "torch" else run()
        if truth is not None:
            errors[name] = _distance(answer, truth)
        if name.startswith("torch"):
            continue
        # torch's answer errs as well
        apart = max(
            float((mine.float() - theirs.float()).norm() / theirs.float().norm())
            for mine, theirs in zip(answer, torchs, strict=True)
        )
        if errors.get(name, 0.0) > bound or not apart <= 2 * bound + errors.get("torch", 0.0):
            worst = max(errors.get(name, 0.0), apart)
            wrong = f"{name}: relative L2 error {worst:.1e}, bound {bound:.1e}"
    return errors, wrong


def _timed(runners: dict[str, Answer], budget: float) -> dict[str, Timing]:
    """Race the calls; one that takes most of a second is timed once: no ratio of it is close."""
    once = {}
    for name, run in runners.items():
        begin = time.perf_counter()
        run()
        once[name] = time.perf_counter() - begin
    slow = once["torch"] > SLOW_SECONDS and once["torch"] > 4 * min(once.values())
    timings = race(
        {name: run for name, run in runners.items() if not (slow and name.startswith("torch"))},
        budget=budget,
        rounds=ROUNDS,
    )
    rounds = len(next(iter(timings.values())).seconds)
    return {name: timings.get(name) or Timing((once[name],) * rounds) for name in runners}


def measure(row: Row, budget: float, roof: Roof) -> Result:
    """Check and time one row."""
    problem = make_problem(row)
    runners = make_runners(row, problem)
    errors, wrong = check(row, problem, runners)
    timings = _timed(runners, budget)
    least, bound = roof.seconds(problem.flops, problem.bytes, row.torch_dtype)
    ours = [name for name in runners if not name.startswith("torch")]
    ratios = {}
    for name in ours:
        rival = f"torch {name}" if f"torch {name}" in timings else "torch"
        ratios[name] = timings[rival].over(timings[name])
    medians = {name: timing.median for name, timing in timings.items()}
    return Result(
        **asdict(row),
        milliseconds={name: 1e3 * seconds for name, seconds in medians.items()},
        ratios=ratios,
        gflop_s={name: 1e-9 * problem.flops / seconds for name, seconds in medians.items()},
        percent_of_roof={name: 100 * least / seconds for name, seconds in medians.items()},
        bound=bound,
        errors=errors,
        wrong=wrong,
    )
