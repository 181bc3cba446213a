"""max_unpool2d as torch ops: elements back to the places that indices name, and their gradient.

    d max_unpool2d(x)          = max_unpool2d_backward(g, indices)
    d max_unpool2d_backward(g) = max_pool2d_backward(gg, indices, size of g), which adds

Shapes: x and indices [N, C, P, Q] or [C, P, Q]; output and g [N, C, H, W] or [C, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._check import (
    FLOATING,
    Output,
    dtype_name,
    expect,
    expect_dtype,
    expect_rank,
    expect_shape,
)
from fastconv.ops._define import Grads, Op, Unfold, define
from fastconv.ops._layout import is_channels_last
from fastconv.ops._pool import expect_image
from fastconv.ops._vmap import fold_planes
from fastconv.ops.max_pool2d import max_pool2d_backward

if TYPE_CHECKING:
    from torch import Tensor


def expect_indices(op: str, indices: Any) -> None:
    """Indices are int64."""
    dtype = dtype_name(indices)
    expect(dtype == "int64", op, "indices of dtype int64", dtype)


class MaxUnpool2d(Op):
    """Puts every element where its index says."""

    family = "max_unpool2d"
    schema = "max_unpool2d(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor"
    dtypes = FLOATING

    def outputs(self, input: Any, indices: Any, output_size: Any) -> tuple[Output, ...]:
        expect_indices(self.name, indices)
        legal = len(output_size) == 2 and all(each >= 0 for each in output_size)
        expect(legal, self.name, "output_size of 2 values >= 0", list(output_size))
        expect_image(self.name, input.shape)
        expect_shape(self.name, "indices", indices.shape, input.shape)
        expect_dtype(self.name, self.dtypes, input)
        shape = (*input.shape[:-2], *output_size)
        return (Output(shape, len(shape) == 4 and is_channels_last(input)),)

    def torch(self, input: Tensor, indices: Tensor, output_size: Any) -> Any:
        return torch.ops.aten.max_unpool2d(input, indices, tuple(output_size))

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        return (max_unpool2d_backward.call(grad, *tensors) if needs[0] else None, None)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[1:2], inputs[2:]

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else self.call(tangents[0], *tensors, *constants)

    def fold(
        self, batch: int, dims: Any, input: Tensor, indices: Tensor, output_size: Any
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (input, indices))
        return (*planes, output_size), unfold


class MaxUnpool2dBackward(Op):
    """Takes every element's gradient from where it was put."""

    family = "max_unpool2d"
    schema = "max_unpool2d_backward(Tensor grad_output, Tensor indices) -> Tensor"
    dtypes = FLOATING

    def outputs(self, grad_output: Any, indices: Any) -> tuple[Output, ...]:
        expect_indices(self.name, indices)
        expect_rank(self.name, "grad_output", grad_output.shape, 3, 4)
        planes = (*grad_output.shape[:-2], *indices.shape[-2:])
        expect_shape(self.name, "indices", indices.shape, planes)
        expect_dtype(self.name, self.dtypes, grad_output)
        layout = len(planes) == 4 and is_channels_last(indices)
        return (Output(tuple(indices.shape), layout),)

    def torch(self, grad_output: Tensor, indices: Tensor) -> Tensor:
        return grad_output.flatten(-2).gather(-1, indices.flatten(-2)).reshape(indices.shape)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[1:2], (inputs[0].shape,)

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        return (max_pool2d_backward.call(grad, *tensors, *constants) if needs[0] else None, None)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else self.call(tangents[0], *tensors)

    def fold(
        self, batch: int, dims: Any, grad: Tensor, indices: Tensor
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (grad, indices))
        return tuple(planes), unfold


max_unpool2d_backward = define(MaxUnpool2dBackward)
max_unpool2d = define(MaxUnpool2d)
