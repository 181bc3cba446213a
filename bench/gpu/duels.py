"""The two sides of a row of the GPU benches: calls on the same inputs, the truth, the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import pool_race, rivals
from bench.interleave import Runner
from bench.pool_shapes import Layer as PoolLayer
from bench.shapes import LAYOUTS, ConvLayer, TransposedLayer
from fastconv.testing import tolerance

NAMES = (rivals.OURS, "torch")


@dataclass
class Duel:
    """The runners of a row, its float64 truth, the longest sum behind an element, the work."""

    runners: dict[str, Runner]
    truth: Tensor
    length: int
    flops: float
    bytes: float

    def error(self, answer: Tensor) -> float:
        """Return |answer - truth| / |truth|, NaN where the answer holds one."""
        return float((answer.double() - self.truth).norm() / self.truth.norm())

    def check(self, name: str, answer: Tensor, dtype: torch.dtype, largest: float) -> float:
        """Return the error; raise where it is larger than allowed, or the answer is another one."""
        if answer.shape != self.truth.shape or answer.dtype != dtype:
            raise AssertionError(f"{name}: {answer.dtype} {tuple(answer.shape)} is another answer")
        error = self.error(answer)
        if not error <= largest:
            raise AssertionError(f"{name}: off by {error:.1e}, expected {largest:.0e}")
        return error

    def check_elements(self, answer: Tensor) -> None:
        """Raise where an element of ours is off by more than the laws allow."""
        rtol, atol = tolerance(answer.dtype, self.length)
        excess = (answer.double() - self.truth).abs() - rtol * self.truth.abs()
        if not float(excess.max()) <= atol:
            raise AssertionError(f"{rivals.OURS}: an element is off by more than {atol:.1e}")


def conv2d(layer: ConvLayer, which: str, batch: int, dtype: torch.dtype, layout: str) -> Duel:
    """Build a pass of a convolution: forward, input_grad or weight_grad."""
    x, w, b = layer.tensors(batch, dtype, layout)
    wide_x, wide_w = x.double(), w.double()
    work = layer.flops(batch), layer.bytes(batch, dtype)
    if which == "forward":
        truth = F.conv2d(wide_x, wide_w, b if b is None else b.double(), **layer.options)
        runners = rivals.conv2d_forward(layer, x, w, b, NAMES)
        return Duel(runners, truth, layer.reduction_length, *work)
    pixels = batch * layer.out_size**2
    grad = torch.randn(batch, layer.K, layer.out_size, layer.out_size)
    if which == "weight_grad":
        grad = grad / pixels**0.5  # keeps long sums near 1
    grad = grad.to(dtype).contiguous(memory_format=LAYOUTS[layout])
    runners = rivals.conv2d_backward(layer, which, x, w, grad)
    if which == "input_grad":
        truth = torch.nn.grad.conv2d_input(x.shape, wide_w, grad.double(), **layer.options)
        return Duel(runners, truth, layer.K // layer.groups * layer.window**2, *work)
    truth = torch.nn.grad.conv2d_weight(wide_x, w.shape, grad.double(), **layer.options)
    return Duel(runners, truth, pixels, *work)


def conv_transpose2d(
    layer: TransposedLayer, which: str, batch: int, dtype: torch.dtype, layout: str
) -> Duel:
    """Build the forward pass of a transposed convolution; its gradients are conv2d's passes."""
    assert which == "forward"
    x, w, b = layer.tensors(batch, dtype, layout)
    wide = (tensor if tensor is None else tensor.double() for tensor in (x, w, b))
    truth = F.conv_transpose2d(*wide, **layer.options)
    runners = rivals.conv_transpose2d_forward(layer, x, w, b)
    work = layer.flops(batch), layer.bytes(batch, dtype)
    return Duel(runners, truth, layer.reduction_length, *work)


def pool(layer: PoolLayer, which: str, batch: int, dtype: torch.dtype, layout: str) -> Duel:
    """Build a pass of a pooling: forward, indices or backward (through autograd on both sides)."""
    runners, truth, moved = pool_race.make_runners(layer, which, batch, dtype, layout)

    def values(run: Callable[[], tuple[Tensor, ...]]) -> Runner:
        return lambda: run()[0]

    ours = {name: values(run) for name, run in runners.items()}
    return Duel(ours, truth()[0].detach(), layer.window_elements, 0.0, moved)
