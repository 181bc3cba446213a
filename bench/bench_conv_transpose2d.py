"""conv_transpose2d where networks use it, against torch: forward, and a step of training.

Reported: GFLOP/s of the products, those that padding cuts off included, and the percentage of the
roofline. NCHW and channels_last are rows of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional as F

from bench import rivals
from bench.conftest import Work
from bench.interleave import Contest
from bench.shapes import BATCHES, DTYPES, LAYOUTS, TRANSPOSED_LAYERS
from fastconv.testing import assert_close

PASSES = ("forward", "training")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per row; the rivals of a group follow one another."""
    quick = metafunc.config.getoption("quick")
    rows = [
        (which, layer, batch, dtype, layout, rival)
        for which in PASSES
        for layer in TRANSPOSED_LAYERS
        for batch in BATCHES
        for dtype in DTYPES
        for layout in LAYOUTS
        for rival in (rivals.OURS, "torch")
        if not quick or (TRANSPOSED_LAYERS[layer].quick and batch == 1)
        if not quick or dtype == "float32" or (which, layout) == ("forward", "channels_last")
    ]
    metafunc.parametrize(("which", "layer", "batch", "dtype", "layout", "rival"), rows)


def make_contest(which: str, name: str, batch: int, dtype: torch.dtype, layout: str) -> Contest:
    """Build the inputs, the runners and the truth of one group."""
    layer = TRANSPOSED_LAYERS[name]
    x, w, b = layer.tensors(batch, dtype, layout)
    wide = [tensor if tensor is None else tensor.double() for tensor in (x, w, b)]
    pixels = batch * layer.out_size**2
    if which == "forward":
        runners = rivals.conv_transpose2d_forward(layer, x, w, b)
        truths, lengths = [F.conv_transpose2d(*wide, **layer.options)], [layer.reduction_length]
    else:
        grad = torch.randn(batch, layer.K, layer.out_size, layer.out_size)
        grad = grad.div(pixels**0.5).to(dtype)  # keeps long sums near 1
        grad = grad.contiguous(memory_format=LAYOUTS[layout])
        runners = rivals.conv_transpose2d_training(layer, x, w, b, grad)
        leaves = [tensor.requires_grad_() for tensor in wide if tensor is not None]
        output = F.conv_transpose2d(*wide, **layer.options)
        truths = list(torch.autograd.grad(output, leaves, grad.double()))
        lengths = [layer.K // layer.groups * layer.window**2, batch * layer.size**2, pixels]

    def check(rival: str, answer: Any) -> None:
        context = f"{rival}, {which}, {name}, batch {batch}, {layout}"
        answers = [answer] if which == "forward" else answer
        for mine, truth, length in zip(answers, truths, lengths, strict=False):
            assert_close(mine, truth.detach(), reduction_length=length, context=context)

    return Contest(runners, check)


def test_conv_transpose2d(
    which: str,
    layer: str,
    batch: int,
    dtype: str,
    layout: str,
    rival: str,
    fill: Callable[..., Any],
    rate: Callable[..., None],
    benchmark: BenchmarkFixture,
) -> None:
    """Fill one row."""
    benchmark.extra_info |= {"suite": f"conv_transpose2d {which}", "unit": "gflop_s"}
    timing = fill(
        f"conv_transpose2d {which}, {layer}, batch {batch}, {dtype}, {layout}",
        rival,
        rivals.OURS,
        lambda: make_contest(which, layer, batch, DTYPES[dtype], layout),
    )
    shape, passes = TRANSPOSED_LAYERS[layer], 1 if which == "forward" else 3
    work = (passes * size for size in (shape.flops(batch), shape.bytes(batch, DTYPES[dtype])))
    rate(timing, Work(*work, DTYPES[dtype]))
