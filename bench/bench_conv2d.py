"""conv2d on the layers of well-known networks: forward and the two gradients, against the rivals.

Reported: GFLOP/s of the direct algorithm's work (an algorithm that needs fewer products may exceed
the roof) and the percentage of the roofline, which for pointwise and depthwise layers is often the
memory's. NCHW and channels_last are rows of their own: nobody is charged for a conversion that was
not asked for.
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
from bench.shapes import BATCHES, CONV_LAYERS, DTYPES, LAYOUTS
from fastconv.testing import assert_close

PASSES = ("forward", "input_grad", "weight_grad")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per row; the rivals of a group follow one another."""
    quick = metafunc.config.getoption("quick")
    rows = [
        (which, layer, batch, dtype, layout, rival)
        for which in PASSES
        for layer in CONV_LAYERS
        for batch in BATCHES
        for dtype in DTYPES
        for layout in LAYOUTS
        for rival in (
            rivals.applicable(dtype, layout) if which == "forward" else (rivals.OURS, "torch")
        )
        if not quick or (CONV_LAYERS[layer].quick and batch == 1)
        if not quick or dtype == "float32" or (which, layout) == ("forward", "channels_last")
    ]
    metafunc.parametrize(("which", "layer", "batch", "dtype", "layout", "rival"), rows)


def make_contest(which: str, name: str, batch: int, dtype: torch.dtype, layout: str) -> Contest:
    """Build the inputs, the runners and the truth of one group."""
    layer = CONV_LAYERS[name]
    x, w, b = layer.tensors(batch, dtype, layout)
    wide_x, wide_w = x.double(), w.double()
    names = rivals.applicable(str(dtype).removeprefix("torch."), layout)
    if which == "forward":
        runners = rivals.conv2d_forward(layer, x, w, b, names)
        truth = F.conv2d(wide_x, wide_w, b if b is None else b.double(), **layer.options)
        length = layer.reduction_length
    else:
        shape = (batch, layer.K, layer.out_size, layer.out_size)
        sums = 1 if which == "input_grad" else batch * layer.out_size**2
        grad = torch.randn(shape).div(sums**0.5).to(dtype)  # keeps long sums near 1
        grad = grad.contiguous(memory_format=LAYOUTS[layout])
        runners = rivals.conv2d_backward(layer, which, x, w, grad)
        if which == "input_grad":
            truth = torch.nn.grad.conv2d_input(x.shape, wide_w, grad.double(), **layer.options)
            length = layer.K // layer.groups * layer.window**2
        else:
            truth = torch.nn.grad.conv2d_weight(wide_x, w.shape, grad.double(), **layer.options)
            length = batch * layer.out_size**2

    def check(rival: str, answer: object) -> None:
        context = f"{rival}, {which}, {name}, batch {batch}, {layout}"
        assert_close(torch.as_tensor(answer), truth, reduction_length=length, context=context)

    return Contest(runners, check, rivals.POOL_PAUSE if len(runners) > 2 else 0.0)


def test_conv2d(
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
    benchmark.extra_info |= {"suite": f"conv2d {which}", "unit": "gflop_s"}
    timing = fill(
        f"conv2d {which}, {layer}, batch {batch}, {dtype}, {layout}",
        rival,
        rivals.OURS,
        lambda: make_contest(which, layer, batch, DTYPES[dtype], layout),
    )
    shape = CONV_LAYERS[layer]
    rate(timing, Work(shape.flops(batch), shape.bytes(batch, DTYPES[dtype]), DTYPES[dtype]))
