"""adaptive_max_pool2d as torch ops: the values alone, and with indices.

    d adaptive_max_pool2d_with_indices(x) = max_pool2d_backward(g, indices)

Shapes: x [N, C, H, W] or [C, H, W]; output, indices and g [N, C, P, Q] or [C, P, Q].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fastconv._torch_private import torch
from fastconv.ops._check import FLOATING, Output, expect, expect_dtype, expect_rank
from fastconv.ops._define import Grads, Op, Unfold, define
from fastconv.ops._layout import is_channels_last
from fastconv.ops._vmap import fold_planes
from fastconv.ops.max_pool2d import max_pool2d_backward, take

if TYPE_CHECKING:
    from torch import Tensor


class AdaptiveMaxPool2dWithIndices(Op):
    """The largest elements of as many windows as are asked for, and where they were."""

    family = "adaptive_max_pool2d"
    schema = (
        "adaptive_max_pool2d_with_indices(Tensor input, SymInt[] output_size) -> (Tensor, Tensor)"
    )
    dtypes = FLOATING
    integer_outputs: ClassVar[tuple[int, ...]] = (1,)

    def outputs(self, input: Any, output_size: Any) -> tuple[Output, ...]:
        expect_rank(self.name, "input", input.shape, 3, 4)
        law = "an input without empty dimensions (but the first)"
        expect(all(size >= 1 for size in input.shape[1:]), self.name, law, list(input.shape))
        legal = len(output_size) == 2 and all(each >= 0 for each in output_size)
        expect(legal, self.name, "output_size of 2 values >= 0", list(output_size))
        expect_dtype(self.name, self.dtypes, input)
        shape = (*input.shape[:-2], *output_size)
        layout = len(shape) == 4 and is_channels_last(input)
        return Output(shape, layout), Output(shape, layout, torch.int64 if torch else "int64")

    def torch(self, input: Tensor, output_size: Any) -> Any:
        return torch.nn.functional.adaptive_max_pool2d_with_indices(input, tuple(output_size))

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return (result[1],), (inputs[0].shape,)

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        return (max_pool2d_backward.call(grad, *tensors, *constants) if needs[0] else None,)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else take(tangents[0], tensors[0])

    def fold(
        self, batch: int, dims: Any, input: Tensor, output_size: Any
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (input,))
        return (*planes, output_size), unfold


adaptive_max_pool2d_with_indices = define(AdaptiveMaxPool2dWithIndices)


class AdaptiveMaxPool2d(AdaptiveMaxPool2dWithIndices):
    """The largest elements. Its own derivative must look for the indices again."""

    schema = "adaptive_max_pool2d(Tensor input, SymInt[] output_size) -> Tensor"
    integer_outputs: ClassVar[tuple[int, ...]] = ()
    training = adaptive_max_pool2d_with_indices

    def outputs(self, input: Any, output_size: Any) -> tuple[Output, ...]:
        return super().outputs(input, output_size)[:1]

    def torch(self, input: Tensor, output_size: Any) -> Any:
        return super().torch(input, output_size)[0]

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[:1], inputs[1:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        (x,) = tensors
        if not needs[0]:
            return (None,)
        _, indices = adaptive_max_pool2d_with_indices.call(x.detach(), *constants)
        return (max_pool2d_backward.call(grad, indices, x.shape),)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        if tangents[0] is None:
            return None
        _, indices = adaptive_max_pool2d_with_indices.call(tensors[0].detach(), *constants)
        return take(tangents[0], indices)


adaptive_max_pool2d = define(AdaptiveMaxPool2d)
