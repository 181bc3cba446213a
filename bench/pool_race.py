"""One row of the pool table: build torch's and fastconv's calls, check the answers, time them.

Forward runs in inference mode; backward is `torch.autograd.grad` of a forward pass that has been
run, on both sides: what a call of Python costs is in the times, as it is for who trains. Answers
are held against torch's own in float64; those of a maximum must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FC
from bench.interleave import Timing, race
from bench.pool_shapes import LARGE_BYTES, LAYERS, Layer, Row
from bench.roofline import Roof
from bench.shapes import LAYOUTS
from fastconv.testing import assert_close

ROUNDS = (5, 31)

Answer = Callable[[], Sequence[Tensor]]


def _places(layer: Layer, x: Tensor) -> tuple[Tensor]:
    """Return where a pooling of an image of the unpooled size found its maxima."""
    pixels, options = layer.kwargs["stride"], layer.kwargs
    larger = torch.randn(*x.shape[:2], *(pixels * size for size in x.shape[2:]))
    indices = F.max_pool2d(larger, **options, return_indices=True)[1]
    last = x.is_contiguous(memory_format=torch.channels_last)
    return (indices.contiguous(memory_format=torch.channels_last) if last else indices,)


# What an operation takes beside the image, by its name: (layer, image) to further arguments.
INPUTS: dict[str, Callable[[Layer, Tensor], tuple[Any, ...]]] = {"max_unpool2d": _places}


@dataclass(frozen=True)
class Result:
    """What is known of a row; the ratio is torch's time over fastconv's."""

    what: str
    layer: str
    batch: int
    dtype: str
    layout: str
    milliseconds: dict[str, float]
    ratio: float
    gb_s: float
    percent_of_copy: float
    large: bool  # more bytes than the caches hold
    wrong: str = ""

    @property
    def row(self) -> Row:
        """Return the row that was measured."""
        return Row(self.what, self.layer, self.batch, self.dtype, self.layout)


def _forward(package: Any, layer: Layer, arguments: tuple[Any, ...], indices: bool) -> Answer:
    function, options = getattr(package, layer.op), layer.kwargs
    if indices:
        options["return_indices"] = True

    def run() -> Sequence[Tensor]:
        with torch.inference_mode():
            result = function(*arguments, **options)
        return result if indices else (result,)

    return run


def _backward(package: Any, layer: Layer, arguments: tuple[Any, ...], grad: Tensor) -> Answer:
    """Return the gradient by the image of a forward pass that has been run, through autograd."""
    x = arguments[0].detach().requires_grad_()
    output = getattr(package, layer.op)(x, *arguments[1:], **layer.kwargs)
    return lambda: torch.autograd.grad(output, x, grad, retain_graph=True)


def _bytes(layer: Layer, what: str, x: Tensor, output: Tensor) -> int:
    """Return what must be moved: each element of input, output and indices once.

    Backward needs to know which element was taken: a byte of each output is enough.
    """
    moved = (x.numel() + output.numel()) * x.element_size()
    if layer.op == "max_unpool2d":  # indices come from the caller
        return int(moved + 8 * x.numel())
    extra = {"forward": 0, "indices": 8, "backward": int("max" in layer.op)}[what]
    return int(moved + extra * output.numel())


def make_runners(
    layer: Layer, what: str, batch: int, dtype: torch.dtype, layout: str
) -> tuple[dict[str, Answer], Answer, int]:
    """Return the calls by name, the truth in float64, and the bytes that a call must move."""
    x = layer.tensor(batch, dtype, layout)
    others = INPUTS.get(layer.op, lambda layer, x: ())(layer, x)
    packages = {"torch": F, "fastconv": FC}
    with torch.inference_mode():
        output = getattr(F, layer.op)(x, *others, **layer.kwargs)
    moved = _bytes(layer, what, x, output)
    if what == "backward":
        grad = torch.randn(output.shape).to(dtype)
        grad = grad.contiguous(memory_format=LAYOUTS[layout])
        runners = {
            name: _backward(package, layer, (x, *others), grad)
            for name, package in packages.items()
        }
        return runners, _backward(F, layer, (x.double(), *others), grad.double()), moved
    indices = what == "indices"
    runners = {
        name: _forward(package, layer, (x, *others), indices) for name, package in packages.items()
    }
    return runners, _forward(F, layer, (x.double(), *others), indices), moved


def check(row: Row, answer: Sequence[Tensor], truth: Sequence[Tensor]) -> str:
    """Return what is wrong with an answer of ours; nothing if it is right."""
    layer = LAYERS[row.layer]
    length = 1 if row.what != "backward" and "max" in layer.op else layer.window_elements
    try:
        assert_close(answer[0], truth[0], reduction_length=length, context="values")
        for mine, true in zip(answer[1:], truth[1:], strict=True):
            assert torch.equal(mine, true), "indices differ from torch's"
    except AssertionError as error:
        return str(error)[:200]
    return ""


def measure(row: Row, budget: float, roof: Roof) -> Result:
    """Check and time one row."""
    layer, kind = LAYERS[row.layer], (row.batch, row.torch_dtype, row.layout)
    runners, truth, moved = make_runners(layer, row.what, *kind)
    wrong = check(row, runners["fastconv"](), truth())
    timings: dict[str, Timing] = race(runners, budget=budget, rounds=ROUNDS)
    gb_s = 1e-9 * moved / timings["fastconv"].median
    return Result(
        **asdict(row),
        milliseconds={name: 1e3 * timing.median for name, timing in timings.items()},
        ratio=timings["torch"].over(timings["fastconv"]),
        gb_s=gb_s,
        percent_of_copy=100 * gb_s / roof.copy_gb_s,
        large=moved > LARGE_BYTES,
        wrong=wrong,
    )
