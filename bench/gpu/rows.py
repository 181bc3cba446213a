"""The rows of the GPU benches: what is compared, in the order in which it matters, and its truth.

A run has minutes: rows are sorted so that what is cut off at the end is what says least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import rivals
from bench.interleave import Runner
from bench.shapes import CONV_LAYERS, LAYOUTS, POOL_LAYERS, ConvLayer, PoolLayer
from fastconv.testing import tolerance

NETS = ("resnet50", "convnext_t", "resnext50", "mobilenetv2")
NAMES = (rivals.OURS, "torch")
BATCHES = (32, 1)
# name: dtype, whether torch may use tf32, and how early the mode comes
MODES = {
    "bfloat16": (torch.bfloat16, False, 0),
    "float32": (torch.float32, False, 0),
    "float32 tf32": (torch.float32, True, 1),
    "float16": (torch.float16, False, 2),
}
PASSES = {
    "conv2d": ("forward", "input_grad", "weight_grad"),
    "max_pool2d": ("forward", "backward"),
}
# The largest |answer - truth| / |truth| (norms over the whole answer) of a rival's answer: a few
# roundings of operands; cuDNN may choose algorithms that round between transforms.
NORM_ERROR = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 2e-5, "float32 tf32": 4e-3}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    operation: str
    which: str
    layer: ConvLayer | PoolLayer
    batch: int
    mode: str
    layout: str

    @property
    def name(self) -> str:
        """Return all that tells rows apart."""
        return f"{self.which}, {self.layer.name}, batch {self.batch}, {self.mode}, {self.layout}"

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the tensors."""
        return MODES[self.mode][0]

    @property
    def lateness(self) -> int:
        """Return how late the row comes: the sum of what makes it less telling."""
        late = 2 * (not self.layer.quick) + 2 * (self.batch == 1) + MODES[self.mode][2]
        return late + (self.which != "forward")

    def work(self) -> tuple[float, float]:
        """Return the least flops and bytes."""
        if isinstance(self.layer, ConvLayer):
            return self.layer.flops(self.batch), self.layer.bytes(self.batch, self.dtype)
        indices = self.which == "backward"
        return 0.0, self.layer.bytes(self.batch, self.dtype, indices=indices)


@dataclass
class Duel:
    """The runners of a row, the float64 truth, and the longest sum behind an element of it."""

    runners: dict[str, Runner]
    truth: Tensor
    length: int

    def error(self, answer: Tensor) -> float:
        """Return |answer - truth| / |truth|, NaN where the answer holds one."""
        return float((answer.double() - self.truth).norm() / self.truth.norm())

    def check(self, name: str, row: Row, answer: Tensor) -> float:
        """Return the error; raise where it is too large: ours by the laws' tolerance too."""
        if answer.shape != self.truth.shape or answer.dtype != row.dtype:
            raise AssertionError(f"{name}: {answer.dtype} {tuple(answer.shape)} is another answer")
        error = self.error(answer)
        if not error <= NORM_ERROR[row.mode]:
            raise AssertionError(f"{name}: off by {error:.1e}, expected {NORM_ERROR[row.mode]:.0e}")
        if name == rivals.OURS and row.mode != "float32 tf32":
            rtol, atol = tolerance(row.dtype, self.length)
            excess = (answer.double() - self.truth).abs() - rtol * self.truth.abs()
            if not float(excess.max()) <= atol:
                raise AssertionError(f"{name}: an element is off by more than {atol:.1e}")
        return error


def plan(operation: str) -> list[Row]:
    """Return all rows of an operation, the most telling first."""
    layers = CONV_LAYERS if operation == "conv2d" else POOL_LAYERS
    rows = [
        Row(operation, which, layer, batch, mode, layout)
        for batch in BATCHES
        for layer in layers.values()
        if operation != "conv2d" or layer.net in NETS
        for mode in MODES
        if operation == "conv2d" or mode != "float32 tf32"
        for layout in LAYOUTS
        for which in PASSES[operation]
    ]
    return sorted(rows, key=lambda row: row.lateness)


def rehearsal(operation: str) -> Iterator[Row]:
    """Yield rows small enough for a machine without a device: every pass, mode and layout."""
    for which in PASSES[operation]:
        for mode in MODES if operation == "conv2d" else ("bfloat16", "float32"):
            for layout in LAYOUTS:
                conv = ConvLayer("tiny", 4, 6, 9, 3, 2, 1, 2)
                layer = conv if operation == "conv2d" else PoolLayer("tiny", 4, 9, 3, 2, 1)
                yield Row(operation, which, layer, 2, mode, layout)


def make_duel(row: Row, device: str) -> Duel:
    """Build inputs, runners and truth of a row on a device."""
    with torch.device(device):  # for building alone: while it is active, every call costs more
        return _conv2d(row) if row.operation == "conv2d" else _max_pool2d(row)


def _conv2d(row: Row) -> Duel:
    layer = row.layer
    x, w, b = layer.tensors(row.batch, row.dtype, row.layout)
    wide_x, wide_w = x.double(), w.double()
    if row.which == "forward":
        truth = F.conv2d(wide_x, wide_w, b if b is None else b.double(), **layer.options)
        runners = rivals.conv2d_forward(layer, x, w, b, NAMES)
        return Duel(runners, truth, layer.reduction_length)
    pixels = row.batch * layer.out_size**2
    grad = torch.randn(row.batch, layer.K, layer.out_size, layer.out_size)
    if row.which == "weight_grad":
        grad = grad / pixels**0.5  # keeps long sums near 1
    grad = grad.to(row.dtype).contiguous(memory_format=LAYOUTS[row.layout])
    runners = rivals.conv2d_backward(layer, row.which, x, w, grad)
    if row.which == "input_grad":
        truth = torch.nn.grad.conv2d_input(x.shape, wide_w, grad.double(), **layer.options)
        return Duel(runners, truth, layer.K // layer.groups * layer.window**2)
    truth = torch.nn.grad.conv2d_weight(wide_x, w.shape, grad.double(), **layer.options)
    return Duel(runners, truth, pixels)


def _max_pool2d(row: Row) -> Duel:
    layer = row.layer
    x = layer.tensor(row.batch, row.dtype, row.layout)
    wide = x.double().requires_grad_()
    values, indices = F.max_pool2d_with_indices(wide, **layer.options)
    if row.which == "forward":
        return Duel(rivals.max_pool2d_forward(layer, x, NAMES), values.detach(), 1)
    grad = torch.randn(values.shape).to(row.dtype)
    grad, indices = (t.contiguous(memory_format=LAYOUTS[row.layout]) for t in (grad, indices))
    (truth,) = torch.autograd.grad(values, wide, grad.double())
    runners = rivals.max_pool2d_backward(layer, x, grad, indices)
    return Duel(runners, truth, layer.window**2)
