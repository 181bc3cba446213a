"""max_pool2d as torch ops: the values alone, with indices, with taps, and their backward pass.

    d max_pool2d_with_indices(x) = max_pool2d_backward(g, indices)
    d max_pool2d_with_taps(x)    = max_pool2d_backward(g, taps), taps saying the same in a byte
    d max_pool2d_backward(g)     = take(gg, indices), which torch differentiates further

Shapes: x [N, C, H, W] or [C, H, W]; output, indices, taps and g [N, C, P, Q] or [C, P, Q].
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
from fastconv.reference._window import pair

if TYPE_CHECKING:
    from torch import Tensor

_ARGUMENTS = (
    "(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, "
    "bool ceil_mode=False)"
)


MOST_TAPS = 255


def geometry(
    kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1
) -> tuple[tuple[int, int], ...]:
    """A window's constants, each as a pair."""
    step = kernel_size if stride in ((), []) else stride
    return pair(kernel_size), pair(step), pair(padding), pair(dilation)


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


def has_taps(kernel_size: Any) -> bool:
    """Whether a byte tells the elements of the window apart, and none of them."""
    rows, columns = pair(kernel_size)
    return rows * columns <= MOST_TAPS


def positions(taps: Tensor, input_size: Any, *window: Any) -> Tensor:
    """The indices ``h * W + w`` that taps stand for; -1 for none.

    Args:
        taps: [N, C, P, Q] or [C, P, Q]; indices are given back as they are.
        input_size: of the pooling's input.
        window: kernel_size, stride, padding and dilation; trailing defaults may be absent.
    """
    if taps.dtype == torch.int64:
        return taps
    kernel, stride, padding, dilation = geometry(*window)
    number = taps.to(torch.int64)
    row, column = number // kernel[1], number % kernel[1]
    p, q = (torch.arange(size, device=taps.device) for size in taps.shape[-2:])
    h = (p * stride[0] - padding[0])[:, None] + row * dilation[0]
    w = q * stride[1] - padding[1] + column * dilation[1]
    return torch.where(number < kernel[0] * kernel[1], h * input_size[-1] + w, -1)


class MaxPool2dWithIndices(Op):
    """The largest element of every window, and where it was."""

    family = "max_pool2d"
    schema = f"max_pool2d_with_indices{_ARGUMENTS} -> (Tensor, Tensor)"
    dtypes = FLOATING | INTEGER
    integer_outputs: ClassVar[tuple[int, ...]] = (1,)

    def place_dtype(self, kernel_size: Any) -> str:
        """The dtype of what says which elements were taken."""
        return "int64"

    def outputs(self, input: Any, *window: Any) -> tuple[Output, ...]:
        shape = pooled_size(self.name, input.shape, *window)
        expect_dtype(self.name, self.dtypes, input)
        layout = len(shape) == 4 and is_channels_last(input)
        dtype = self.place_dtype(window[0])
        return Output(shape, layout), Output(
            shape, layout, getattr(torch, dtype) if torch else dtype
        )

    def torch(self, input: Tensor, *window: Any) -> Any:
        return torch.nn.functional.max_pool2d_with_indices(input, *window)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return (result[1],), (inputs[0].shape, *inputs[1:5])

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        return (max_pool2d_backward.call(grad, *tensors, *constants) if needs[0] else None,)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else take(tangents[0], positions(*tensors, *constants))

    def fold(
        self, batch: int, dims: Any, input: Tensor, *window: Any
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (input,))
        return (*planes, *window), unfold


class MaxPool2dWithTaps(MaxPool2dWithIndices):
    """The same for training: the number r * S + s of the element in its window, as uint8, 255 for
    none; of windows of more than 255 elements the indices.
    """

    schema = f"max_pool2d_with_taps{_ARGUMENTS} -> (Tensor, Tensor)"
    dtypes = FLOATING

    def place_dtype(self, kernel_size: Any) -> str:
        return "uint8" if has_taps(kernel_size) else "int64"

    def torch(self, input: Tensor, *window: Any) -> Any:
        values, indices = super().torch(input, *window)
        if not has_taps(window[0]):
            return values, indices
        kernel, stride, padding, dilation = geometry(*window[:4])
        height, width = input.shape[-2:]
        p, q = (torch.arange(size, device=input.device) for size in indices.shape[-2:])
        below = indices // width - (p * stride[0] - padding[0])[:, None]
        behind = indices % width - (q * stride[1] - padding[1])
        held = indices < height * width
        for axis, distance in enumerate((below, behind)):
            step = dilation[axis]
            held &= (distance >= 0) & (distance % step == 0) & (distance < kernel[axis] * step)
        taps = below // dilation[0] * kernel[1] + behind // dilation[1]
        return values, torch.where(held, taps, MOST_TAPS).to(torch.uint8)


class MaxPool2dBackward(Op):
    """Gives every element of grad_output to the input element that was taken."""

    family = "max_pool2d"
    schema = (
        "max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt[] input_size, "
        "int[2] kernel_size=[], int[2] stride=[], int[2] padding=0, int[2] dilation=1) -> Tensor"
    )
    dtypes = FLOATING

    def outputs(
        self, grad_output: Any, indices: Any, input_size: Any, *window: Any
    ) -> tuple[Output, ...]:
        expect_rank(self.name, "input_size", input_size, 3, 4)
        expect_dtype(self.name, self.dtypes, grad_output)
        dtype = dtype_name(indices)
        law = "indices of dtype int64, or taps of uint8"
        expect(dtype in ("int64", "uint8"), self.name, law, dtype)
        expect_shape(self.name, "indices", indices.shape, grad_output.shape)
        planes = (*input_size[:-2], *grad_output.shape[-2:])
        expect_shape(self.name, "grad_output", grad_output.shape, planes)
        if dtype == "uint8":
            law = "a kernel_size, to which indices of uint8 are taps, of at most 255"
            known = bool(window) and window[0] not in ((), [])
            expect(known and has_taps(window[0]), self.name, law, window[:1])
        layout = len(input_size) == 4 and is_channels_last(indices)
        return (Output(tuple(input_size), layout),)

    def torch(self, grad_output: Tensor, indices: Tensor, input_size: Any, *window: Any) -> Tensor:
        indices = positions(indices, input_size, *window)
        size = input_size[-2] * input_size[-1]
        inside = (indices >= 0) & (indices < size)
        planes = grad_output.new_zeros((*input_size[:-2], size))
        values = torch.where(inside, grad_output, 0).flatten(-2)
        index = indices.clamp(0, max(size - 1, 0)).flatten(-2)
        return planes.scatter_add(-1, index, values).reshape(tuple(input_size))

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[1:2], inputs[2:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        return (take(grad, positions(*tensors, *constants)) if needs[0] else None,)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else self.call(tangents[0], *tensors, *constants)

    def fold(
        self, batch: int, dims: Any, grad: Tensor, indices: Tensor, input_size: Any, *window: Any
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (grad, indices))
        n, channels, height, width = (1, *input_size)[-4:]
        return (*planes, (batch * n, channels, height, width), *window), unfold


max_pool2d_with_indices = define(MaxPool2dWithIndices)
max_pool2d_with_taps = define(MaxPool2dWithTaps)
max_pool2d_backward = define(MaxPool2dBackward)


class MaxPool2d(MaxPool2dWithIndices):
    """The largest element of every window. Its own derivative must look for the places again."""

    schema = f"max_pool2d{_ARGUMENTS} -> Tensor"
    integer_outputs: ClassVar[tuple[int, ...]] = ()
    training = max_pool2d_with_taps

    def outputs(self, input: Any, *window: Any) -> tuple[Output, ...]:
        return super().outputs(input, *window)[:1]

    def torch(self, input: Tensor, *window: Any) -> Any:
        return torch.nn.functional.max_pool2d(input, *window)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[:1], inputs[1:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        (x,) = tensors
        if not needs[0]:
            return (None,)
        _, taps = max_pool2d_with_taps.call(x.detach(), *constants)
        return (max_pool2d_backward.call(grad, taps, x.shape, *constants[:4]),)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        if tangents[0] is None:
            return None
        _, taps = max_pool2d_with_taps.call(tensors[0].detach(), *constants)
        return take(tangents[0], positions(taps, tensors[0].shape, *constants[:4]))


max_pool2d = define(MaxPool2d)
