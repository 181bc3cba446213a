"""max_pool2d as torch ops: the values alone, values with indices, and the backward pass of both.

    d max_pool2d_with_indices(x) = max_pool2d_backward(g, indices)
    d max_pool2d_backward(g)     = take(gg, indices), which torch differentiates further

Shapes: x [N, C, H, W] or [C, H, W]; output, indices and g [N, C, P, Q] or [C, P, Q].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fastconv._torch_private import torch
from fastconv.ops._check import (
    FLOATING,
    INTEGER,
    Output,
    dtype_name,
    expect,
    expect_dtype,
    expect_rank,
    expect_shape,
)
from fastconv.ops._define import Grads, Op, Unfold, define
from fastconv.ops._layout import is_channels_last
from fastconv.ops._pool import pooled_size
from fastconv.ops._vmap import fold_planes

if TYPE_CHECKING:
    from torch import Tensor

_ARGUMENTS = (
    "(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, "
    "bool ceil_mode=False)"
)


def take(planes: Tensor, indices: Tensor) -> Tensor:
    """``output[n,c,p,q] = planes[n,c][indices[n,c,p,q]]``;

    0 where the index lies outside of the plane.
    """
    *outer, height, width = planes.shape
    size = height * width
    # Not flatten: torch's older vmap, in gradcheck, has no rule for it.
    index = indices.reshape(*outer, indices.shape[-2] * indices.shape[-1])
    taken = planes.reshape(*outer, size).gather(-1, index.clamp(0, size - 1))
    return torch.where((index >= 0) & (index < size), taken, 0).reshape(indices.shape)


class MaxPool2dWithIndices(Op):
    """The largest element of every window, and where it was."""

    family = "max_pool2d"
    schema = f"max_pool2d_with_indices{_ARGUMENTS} -> (Tensor, Tensor)"
    dtypes = FLOATING | INTEGER
    integer_outputs: ClassVar[tuple[int, ...]] = (1,)

    def outputs(self, input: Any, *window: Any) -> tuple[Output, ...]:
        shape = pooled_size(self.name, input.shape, *window)
        expect_dtype(self.name, self.dtypes, input)
        layout = len(shape) == 4 and is_channels_last(input)
        return Output(shape, layout), Output(shape, layout, torch.int64 if torch else "int64")

    def torch(self, input: Tensor, *window: Any) -> Any:
        return torch.nn.functional.max_pool2d_with_indices(input, *window)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return (result[1],), (inputs[0].shape,)

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        return (max_pool2d_backward.call(grad, *tensors, *constants) if needs[0] else None,)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else take(tangents[0], tensors[0])

    def fold(
        self, batch: int, dims: Any, input: Tensor, *window: Any
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (input,))
        return (*planes, *window), unfold


class MaxPool2dBackward(Op):
    """Gives every element of grad_output to the input element that was taken."""

    family = "max_pool2d"
    schema = (
        "max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt[] input_size) -> Tensor"
    )
    dtypes = FLOATING

    def outputs(self, grad_output: Any, indices: Any, input_size: Any) -> tuple[Output, ...]:
        expect_rank(self.name, "input_size", input_size, 3, 4)
        expect_dtype(self.name, self.dtypes, grad_output)
        dtype = dtype_name(indices)
        expect(dtype == "int64", self.name, "indices of dtype int64", dtype)
        expect_shape(self.name, "indices", indices.shape, grad_output.shape)
        planes = (*input_size[:-2], *grad_output.shape[-2:])
        expect_shape(self.name, "grad_output", grad_output.shape, planes)
        layout = len(input_size) == 4 and is_channels_last(indices)
        return (Output(tuple(input_size), layout),)

    def torch(self, grad_output: Tensor, indices: Tensor, input_size: Any) -> Tensor:
        size = input_size[-2] * input_size[-1]
        inside = (indices >= 0) & (indices < size)
        planes = grad_output.new_zeros((*input_size[:-2], size))
        values = torch.where(inside, grad_output, 0).flatten(-2)
        index = indices.clamp(0, max(size - 1, 0)).flatten(-2)
        return planes.scatter_add(-1, index, values).reshape(tuple(input_size))

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[1:2], inputs[2:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        return (take(grad, tensors[0]) if needs[0] else None,)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else self.call(tangents[0], *tensors, *constants)

    def fold(
        self, batch: int, dims: Any, grad: Tensor, indices: Tensor, input_size: Any
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (grad, indices))
        n, channels, height, width = (1, *input_size)[-4:]
        return (*planes, (batch * n, channels, height, width)), unfold


max_pool2d_with_indices = define(MaxPool2dWithIndices)
max_pool2d_backward = define(MaxPool2dBackward)


class MaxPool2d(MaxPool2dWithIndices):
    """The largest element of every window. Its own derivative must look for the indices again."""

    schema = f"max_pool2d{_ARGUMENTS} -> Tensor"
    integer_outputs: ClassVar[tuple[int, ...]] = ()
    training = max_pool2d_with_indices

    def outputs(self, input: Any, *window: Any) -> tuple[Output, ...]:
        return super().outputs(input, *window)[:1]

    def torch(self, input: Tensor, *window: Any) -> Any:
        return torch.nn.functional.max_pool2d(input, *window)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[:1], inputs[1:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        (x,) = tensors
        _, indices = max_pool2d_with_indices.call(x.detach(), *constants)
        return (max_pool2d_backward.call(grad, indices, x.shape) if needs[0] else None,)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        _, indices = max_pool2d_with_indices.call(tensors[0].detach(), *constants)
        return None if tangents[0] is None else take(tangents[0], indices)


max_pool2d = define(MaxPool2d)
