"""What the ops of average pooling share: they are linear, so that each is its own derivative, and
the gradient needs of the input its shape and layout alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv.ops._check import FLOATING, Output, expect_dtype, expect_shape
from fastconv.ops._define import Grads, Op, Unfold, define
from fastconv.ops._layout import is_channels_last
from fastconv.ops._vmap import fold_planes

if TYPE_CHECKING:
    from torch import Tensor


class Averages(Op):
    """(input, *constants) to the means of its windows."""

    dtypes = FLOATING
    gradient: Op  # of the op, by the input

    def output_size(self, size: Sequence[int], *constants: Any) -> tuple[int, ...]:
        """Checks the constants; the shape of the output for an input of that size."""
        raise NotImplementedError

    def outputs(self, input: Any, *constants: Any) -> tuple[Output, ...]:
        shape = self.output_size(input.shape, *constants)
        expect_dtype(self.name, self.dtypes, input)
        return (Output(shape, len(shape) == 4 and is_channels_last(input)),)

    def gradient_constants(self, constants: Sequence[Any]) -> tuple[Any, ...]:
        """Those of the constants that the gradient's op takes too."""
        return tuple(constants)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        input, *constants = inputs
        # Nearly every input is contiguous: that costs less to ask.
        last = not input.is_contiguous() and input.dim() == 4 and is_channels_last(input)
        return (), (input.shape, last, *constants)

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        size, last, *rest = constants
        wanted = self.gradient_constants(rest)
        return (self.gradient.call(grad, size, last, *wanted) if needs[0] else None,)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else self.call(tangents[0], *constants[2:])

    def fold(
        self, batch: int, dims: Any, input: Tensor, *constants: Any
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (input,))
        return (*planes, *constants), unfold


class AveragesBackward(Op):
    """(grad_output, input_size, channels_last, *constants) to the gradient by the input."""

    dtypes = FLOATING
    means: Averages  # the op whose gradient this is

    def means_constants(
        self, grad_size: Sequence[int], constants: Sequence[Any]
    ) -> tuple[Any, ...]:
        """The constants of the op whose gradient this is."""
        return tuple(constants)

    def outputs(
        self, grad_output: Any, input_size: Any, channels_last: bool, *constants: Any
    ) -> tuple[Output, ...]:
        expect_dtype(self.name, self.dtypes, grad_output)
        means = self.means_constants(grad_output.shape, constants)
        wanted = self.means.output_size(input_size, *means)
        expect_shape(self.name, "grad_output", grad_output.shape, wanted)
        return (Output(tuple(input_size), len(input_size) == 4 and channels_last),)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        grad_output, *constants = inputs
        return (), (grad_output.shape, *constants)

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        grad_size, _, _, *rest = constants
        if not needs[0]:
            return (None,)
        return (self.means.call(grad, *self.means_constants(grad_size, rest)),)

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return None if tangents[0] is None else self.call(tangents[0], *constants[1:])

    def fold(
        self,
        batch: int,
        dims: Any,
        grad: Tensor,
        input_size: Any,
        channels_last: bool,
        *constants: Any,
    ) -> tuple[tuple[Any, ...], Unfold]:
        planes, unfold = fold_planes(batch, dims, (grad,))
        n, *rest = (1, *input_size)[-4:]
        return (*planes, (batch * n, *rest), channels_last, *constants), unfold


def define_pair(
    means: type[Averages], backward: type[AveragesBackward]
) -> tuple[Averages, AveragesBackward]:
    """Defines both ops and tells each of the other."""
    first, second = define(means), define(backward)
    assert isinstance(first, Averages)
    assert isinstance(second, AveragesBackward)
    first.gradient, second.means = second, first
    return first, second
