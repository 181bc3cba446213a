"""conv2d and its two gradients as torch ops. Each one's derivative is made of the other two, so
that all orders exist.

    d conv2d(x, w)          = (conv2d_input_grad(g, w),   conv2d_weight_grad(g, x))
    d conv2d_input_grad(g, w)  = (conv2d(gg, w),             conv2d_weight_grad(g, gg))
    d conv2d_weight_grad(g, x) = (conv2d(x, gg),             conv2d_input_grad(g, gg))

All three are bilinear in their first two tensors. Shapes: x [N, C, H, W] or [C, H, W], w [K, C/G,
R, S], bias [K], g [N, K, P, Q] or [K, P, Q].
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
from fastconv.ops._vmap import fold_conv2d, fold_input_grad, fold_weight_grad

if TYPE_CHECKING:
    from torch import Tensor

_GEOMETRY = "int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1"


def padding_sides(op: str, padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of one, two or four numbers."""
    if not isinstance(padding, int) and len(padding) == 4:
        top, bottom = expect_pair(op, "padding", padding[:2], 0)
        left, right = expect_pair(op, "padding", padding[2:], 0)
        return top, bottom, left, right
    h, w = expect_pair(op, "padding", padding, 0)
    return h, h, w, w


def output_size(
    op: str,
    x: Sequence[int],
    w: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[int, ...]:
    """Checks the geometry of conv2d; the shape of its output."""
    expect_rank(op, "input", x, 3, 4)
    expect_rank(op, "weight", w, 4)
    strides, dilations = (
        expect_pair(op, "stride", stride, 1),
        expect_pair(op, "dilation", dilation, 1),
    )
    sides = padding_sides(op, padding)
    expect(groups >= 1, op, "groups >= 1", groups)
    expect(w[0] >= 1, op, "at least one output channel", list(w))
    expect(w[0] % groups == 0, op, f"output channels divisible by groups={groups}", w[0])
    channels = w[1] * groups
    law = f"input with {channels} channels (weight {list(w)} with groups={groups})"
    expect(x[-3] == channels, op, law, f"{x[-3]} ({list(x)})")
    expect(w[2] >= 1 and w[3] >= 1, op, "a window of at least 1x1", f"{w[2]}x{w[3]}")
    extents = []
    for axis in (0, 1):
        size, before, after = x[axis - 2], sides[2 * axis], sides[2 * axis + 1]
        reach = dilations[axis] * (w[axis + 2] - 1) + 1
        law = f"a window of at most the padded input ({size} + {before} + {after})"
        expect(reach <= size + before + after, op, law, f"{reach}")
        law = "height and width of the input >= 1"
        expect(size >= 1, op, law, list(x))
        extents.append((size + before + after - reach) // strides[axis] + 1)
    return (*x[:-3], w[0], *extents)


class Conv2d(Op):
    """Two-dimensional cross-correlation."""

    family = "conv2d"
    schema = f"conv2d(Tensor input, Tensor weight, Tensor? bias=None, {_GEOMETRY}) -> Tensor"
    dtypes = FLOATING
    autocast = True

    def outputs(
        self, input: Any, weight: Any, bias: Any = None, *geometry: Any
    ) -> tuple[Output, ...]:
        shape = output_size(self.name, input.shape, weight.shape, *geometry)
        expect_dtype(self.name, self.dtypes, input)
        expect_alike(self.name, "weight", weight, "input", input)
        if bias is not None:
            expect_shape(self.name, "bias", bias.shape, weight.shape[:1])
            expect_alike(self.name, "bias", bias, "input", input)
        return (Output(shape, is_channels_last(input) or is_channels_last(weight)),)

    def torch(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not isinstance(padding, (int, str)) and len(padding) == 4:
            top, bottom, left, right = padding
            input = torch.nn.functional.pad(input, (left, right, top, bottom))
            padding = 0
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[:2], inputs[3:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        x, w = tensors
        return (
            conv2d_input_grad.call(grad, w, x.shape, *constants) if needs[0] else None,
            conv2d_weight_grad.call(grad, x, w.shape, *constants) if needs[1] else None,
            grad_by_bias(grad) if len(needs) > 2 and needs[2] else None,
        )[: len(needs)]

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        x, w = tensors
        dx, dw, dbias = (*tangents, None)[:3]
        return sum_of(
            None if dx is None else conv2d.call(dx, w, None, *constants),
            None if dw is None else conv2d.call(x, dw, None, *constants),
            None if dbias is None else dbias[:, None, None],
        )

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        return fold_conv2d(batch, dims, *arguments)

    def flops(self, x: Any, w: Any, *_: Any, out_shape: Any) -> int:
        return product_flops(x, w, out_shape)


class Conv2dInputGrad(Op):
    """Gradient of conv2d by its input."""

    family = "conv2d"
    schema = (
        "conv2d_input_grad(Tensor grad_output, Tensor weight, SymInt[] input_size, "
        f"{_GEOMETRY}) -> Tensor"
    )
    dtypes = FLOATING

    def outputs(
        self, grad_output: Any, weight: Any, input_size: Any, *geometry: Any
    ) -> tuple[Output, ...]:
        shape = output_size(self.name, input_size, weight.shape, *geometry)
        expect_shape(self.name, "grad_output", grad_output.shape, shape)
        expect_dtype(self.name, self.dtypes, grad_output)
        expect_alike(self.name, "weight", weight, "grad_output", grad_output)
        layout = is_channels_last(grad_output) or is_channels_last(weight)
        return (Output(tuple(input_size), layout),)

    def torch(self, grad_output: Tensor, weight: Tensor, input_size: Any, *geometry: Any) -> Tensor:
        return _torch_grad(0, grad_output, input_size, weight.shape, weight, *geometry)

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        g, w = tensors
        _, *geometry = constants
        return (
            conv2d.call(grad, w, None, *geometry) if needs[0] else None,
            conv2d_weight_grad.call(g, grad, w.shape, *geometry) if needs[1] else None,
        )

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return _bilinear_jvp(self, tangents, tensors, constants)

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        return fold_input_grad(batch, dims, *arguments)

    def flops(self, g: Any, w: Any, *_: Any, out_shape: Any) -> int:
        return product_flops(out_shape, w, g)


class Conv2dWeightGrad(Op):
    """Gradient of conv2d by its weight."""

    family = "conv2d"
    schema = (
        "conv2d_weight_grad(Tensor grad_output, Tensor input, SymInt[] weight_size, "
        f"{_GEOMETRY}) -> Tensor"
    )
    dtypes = FLOATING

    def outputs(
        self, grad_output: Any, input: Any, weight_size: Any, *geometry: Any
    ) -> tuple[Output, ...]:
        shape = output_size(self.name, input.shape, weight_size, *geometry)
        expect_shape(self.name, "grad_output", grad_output.shape, shape)
        expect_dtype(self.name, self.dtypes, grad_output)
        expect_alike(self.name, "input", input, "grad_output", grad_output)
        layout = is_channels_last(grad_output) or is_channels_last(input)
        return (Output(tuple(weight_size), layout),)

    def torch(self, grad_output: Tensor, input: Tensor, weight_size: Any, *geometry: Any) -> Tensor:
        return _torch_grad(1, grad_output, input.shape, weight_size, input, *geometry)

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        g, x = tensors
        _, *geometry = constants
        return (
            conv2d.call(x, grad, None, *geometry) if needs[0] else None,
            conv2d_input_grad.call(g, grad, x.shape, *geometry) if needs[1] else None,
        )

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return _bilinear_jvp(self, tangents, tensors, constants)

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        return fold_weight_grad(batch, dims, *arguments)

    def flops(self, g: Any, x: Any, *_: Any, out_shape: Any) -> int:
        return product_flops(x, out_shape, g)


def grad_by_bias(grad: Tensor) -> Tensor:
    """The gradient by a bias [K], from that by the output."""
    return grad.sum((0, 2, 3) if grad.dim() == 4 else (1, 2))


def _bilinear_jvp(op: Op, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
    (a, b), (da, db) = tensors, tangents
    return sum_of(
        None if da is None else op.call(da, b, *constants),
        None if db is None else op.call(a, db, *constants),
    )


def sum_of(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are there."""
    total: Tensor | None = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def product_flops(x: Sequence[int], w: Sequence[int], g: Sequence[int]) -> int:
    """A multiplication and an addition per weight element, image and output pixel."""
    images = g[0] if len(g) == 4 else 1
    k, depth, r, s = w
    return 2 * images * g[-2] * g[-1] * k * depth * r * s


def _torch_grad(
    which: int,
    grad_output: Tensor,
    input_size: Sequence[int],
    weight_size: Sequence[int],
    other: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient by input (0) or weight (1). torch knows no unbatched image, no one-sided padding."""
    top, bottom, left, right = padding_sides("conv2d", padding)
    pad = (left, right, top, bottom) if (top, left) != (bottom, right) else None
    size = (1, *input_size)[-4:]
    if pad:
        size = (*size[:2], size[2] + top + bottom, size[3] + left + right)
    if which == 0:
        image, weight = other.new_empty(1).expand(size), other
    else:
        image = other if other.dim() == 4 else other.unsqueeze(0)
        image = torch.nn.functional.pad(image, pad) if pad else image
        weight = other.new_empty(1).expand(tuple(weight_size))
    result = torch.ops.aten.convolution_backward(
        grad_output if grad_output.dim() == 4 else grad_output.unsqueeze(0),
        image,
        weight,
        None,
        expect_pair("conv2d", "stride", stride, 1),
        (0, 0) if pad else (top, left),
        expect_pair("conv2d", "dilation", dilation, 1),
        False,
        (0, 0),
        groups,
        (which == 0, which == 1, False),
    )[which]
    if which == 0 and pad:
        result = result[:, :, top : top + input_size[-2], left : left + input_size[-1]]
    return result if which == 1 else result.reshape(tuple(input_size))  # type: ignore[no-any-return]


conv2d = define(Conv2d)
conv2d_input_grad = define(Conv2dInputGrad)
conv2d_weight_grad = define(Conv2dWeightGrad)
