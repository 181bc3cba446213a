"""max_pool2d on the layers of well-known networks: values, and the gradient from stored indices.

Pooling computes next to nothing: what counts is GB/s of input and output, each moved once, against
the speed of a copy. Small maps stay in the caches and may exceed that roof. The forward pass asks
for values only, as inference does.
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
from bench.shapes import BATCHES, DTYPES, LAYOUTS, POOL_LAYERS
from fastconv.testing import assert_close

PASSES = ("forward", "backward")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per row; the rivals of a group follow one another."""
    quick = metafunc.config.getoption("quick")
    rows = [
        (which, layer, batch, dtype, layout, rival)
        for which in PASSES
        for layer in POOL_LAYERS
        for batch in BATCHES
        for dtype in DTYPES
        for layout in LAYOUTS
        for rival in (
            rivals.applicable(dtype, layout) if which == "forward" else (rivals.OURS, "torch")
        )
        if not quick or (POOL_LAYERS[layer].quick and batch == 1)
        if not quick or dtype == "float32" or (which, layout) == ("forward", "channels_last")
    ]
    metafunc.parametrize(("which", "layer", "batch", "dtype", "layout", "rival"), rows)


def make_contest(which: str, name: str, batch: int, dtype: torch.dtype, layout: str) -> Contest:
    """Build the inputs, the runners and the truth of one group."""
    layer = POOL_LAYERS[name]
    x = layer.tensor(batch, dtype, layout)
    wide = x.double().requires_grad_()
    values, indices = F.max_pool2d_with_indices(wide, **layer.options)
    if which == "forward":
        names = rivals.applicable(str(dtype).removeprefix("torch."), layout)
        runners, truth, length = rivals.max_pool2d_forward(layer, x, names), values.detach(), 1
    else:
        grad = torch.randn(values.shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        indices = indices.contiguous(memory_format=LAYOUTS[layout])
        runners = rivals.max_pool2d_backward(layer, x, grad, indices)
        (truth,) = torch.autograd.grad(values, wide, grad.double())
        length = layer.window**2

    def check(rival: str, answer: object) -> None:
        context = f"{rival}, {which}, {name}, batch {batch}, {layout}"
        assert_close(torch.as_tensor(answer), truth, reduction_length=length, context=context)

    return Contest(runners, check, rivals.POOL_PAUSE if len(runners) > 2 else 0.0)


def test_max_pool2d(
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
    benchmark.extra_info |= {"suite": f"max_pool2d {which}", "unit": "gb_s"}
    timing = fill(
        f"max_pool2d {which}, {layer}, batch {batch}, {dtype}, {layout}",
        rival,
        rivals.OURS,
        lambda: make_contest(which, layer, batch, DTYPES[dtype], layout),
    )
    moved = POOL_LAYERS[layer].bytes(batch, DTYPES[dtype], indices=which == "backward")
    rate(timing, Work(0.0, moved, DTYPES[dtype]))
