"""conv_transpose2d as a torch op. It is the gradient of conv2d by its input: its derivatives are
conv2d's ops, so that all orders exist.

    d conv_transpose2d(x, w) = (conv2d(g, w), conv2d_weight_grad(x, g))

Shapes: x [N, C, H, W] or [C, H, W], w [C, K/G, R, S], bias [K], g [N, K, P, Q] or [K, P, Q].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._check import (
    FLOATING,
    Output,
    expect,
    expect_alike,
    expect_dtype,
    expect_pair,
    expect_rank,
    expect_shape,
)
from fastconv.ops._define import Grads, Op, Unfold, define
from fastconv.ops._layout import is_channels_last
from fastconv.ops._vmap import fold_conv_transpose2d
from fastconv.ops.conv2d import conv2d, conv2d_weight_grad, grad_by_bias, product_flops, sum_of

if TYPE_CHECKING:
    from torch import Tensor


def output_size(
    op: str,
    x: Sequence[int],
    w: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> tuple[int, ...]:
    """Checks the geometry of conv_transpose2d; the shape of its output."""
    expect_rank(op, "input", x, 3, 4)
    expect_rank(op, "weight", w, 4)
    strides, pads = expect_pair(op, "stride", stride, 1), expect_pair(op, "padding", padding, 0)
    behind = expect_pair(op, "output_padding", output_padding, 0)
    dilations = expect_pair(op, "dilation", dilation, 1)
    expect(groups >= 1, op, "groups >= 1", groups)
    expect(w[0] >= 1 and w[1] >= 1, op, "a weight of at least one channel on either side", list(w))
    expect(w[0] % groups == 0, op, f"input channels divisible by groups={groups}", w[0])
    expect(x[-3] == w[0], op, f"input with {w[0]} channels (weight {list(w)})", list(x))
    expect(w[2] >= 1 and w[3] >= 1, op, "a window of at least 1x1", f"{w[2]}x{w[3]}")
    extents = []
    for axis in (0, 1):
        size, more, step, far = x[axis - 2], behind[axis], strides[axis], dilations[axis]
        law = f"output_padding smaller than stride ({step}) or dilation ({far})"
        expect(more < step or more < far, op, law, more)
        expect(size >= 1, op, "height and width of the input >= 1", list(x))
        extent = (size - 1) * step - 2 * pads[axis] + far * (w[axis + 2] - 1) + more + 1
        expect(extent >= 1, op, "an output with height and width >= 1", extent)
        extents.append(extent)
    return (*x[:-3], w[1] * groups, *extents)


class _Geometry:
    """The constants of a call, as conv2d of the output takes them."""

    def __init__(
        self,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> None:
        self.of_conv2d = stride, padding, dilation, groups
        steps = expect_pair("conv_transpose2d", "stride", stride, 1)
        behind = expect_pair("conv_transpose2d", "output_padding", output_padding, 0)
        # How often conv2d's window still fits behind the last one that the input has: never, unless
        # a dilation allows an output_padding of more than the stride.
        self.rows, self.columns = (more // step for more, step in zip(behind, steps, strict=True))

    def cropped(self, like_input: Tensor) -> Tensor:
        """What conv2d makes of the output, without those windows."""
        if not (self.rows or self.columns):
            return like_input
        _, _, height, width = (1, *like_input.shape)[-4:]
        return like_input[..., : height - self.rows, : width - self.columns]

    def padded(self, input: Tensor) -> Tensor:
        """The input, and zeros for those windows."""
        if not (self.rows or self.columns):
            return input
        return torch.nn.functional.pad(input, (0, self.columns, 0, self.rows))


class ConvTranspose2d(Op):
    """Every input pixel adds the window, times what it holds, to the output."""

    family = "conv_transpose2d"
    schema = (
        "conv_transpose2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, "
        "int[2] padding=0, int[2] output_padding=0, int groups=1, int[2] dilation=1) -> Tensor"
    )
    dtypes = FLOATING
    autocast = True

    def outputs(
        self, input: Any, weight: Any, bias: Any = None, *geometry: Any
    ) -> tuple[Output, ...]:
        shape = output_size(self.name, input.shape, weight.shape, *geometry)
        expect_dtype(self.name, self.dtypes, input)
        expect_alike(self.name, "weight", weight, "input", input)
        if bias is not None:
            expect_shape(self.name, "bias", bias.shape, shape[-3:-2])
            expect_alike(self.name, "bias", bias, "input", input)
        return (Output(shape, is_channels_last(input) or is_channels_last(weight)),)

    def torch(self, *arguments: Any) -> Tensor:
        return torch.conv_transpose2d(*arguments)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[:2], inputs[3:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        (x, w), geometry = tensors, _Geometry(*constants)
        of_conv2d = geometry.of_conv2d
        return (
            geometry.cropped(conv2d.call(grad, w, None, *of_conv2d)) if needs[0] else None,
            conv2d_weight_grad.call(geometry.padded(x), grad, w.shape, *of_conv2d)
            if needs[1]
            else None,
            grad_by_bias(grad) if len(needs) > 2 and needs[2] else None,
        )[: len(needs)]

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        x, w = tensors
        dx, dw, dbias = (*tangents, None)[:3]
        return sum_of(
            None if dx is None else self.call(dx, w, None, *constants),
            None if dw is None else self.call(x, dw, None, *constants),
            None if dbias is None else dbias[:, None, None],
        )

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        return fold_conv_transpose2d(batch, dims, *arguments)

    def flops(self, x: Any, w: Any, *_: Any, out_shape: Any) -> int:
        return product_flops(out_shape, w, x)


conv_transpose2d = define(ConvTranspose2d)
