"""conv2d with a weight that was arranged beforehand: what a frozen module calls.

``conv2d_prepare(input, weight, ...)`` arranges the weight as ``conv2d`` of such an input would have
to in every call; ``conv2d_prepared(input, weight, prepared, ...)`` is ``conv2d``, and saves that
work where ``prepared`` fits the call. Where it does not (another shape's algorithm, another
instruction set, a weight that has changed) it is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv.ops._check import FLOATING, Output, expect
from fastconv.ops._define import Grads, Op, Unfold, define
from fastconv.ops.conv2d import _GEOMETRY, Conv2d, output_size

if TYPE_CHECKING:
    from torch import Tensor


class Conv2dPrepare(Op):
    """The weight as conv2d's algorithm for this input arranges it, as bytes."""

    family = "conv2d"
    schema = f"conv2d_prepare(Tensor input, Tensor weight, {_GEOMETRY}) -> Tensor"
    dtypes = FLOATING

    def outputs(self, input: Any, weight: Any, *geometry: Any) -> tuple[Output, ...]:
        output_size(self.name, input.shape, weight.shape, *geometry)
        expect(False, self.name, "a call with the compiled kernels, on tensors with data", "none")
        return ()

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return (), ()


class Conv2dPrepared(Conv2d):
    """conv2d; its third argument only saves time."""

    schema = (
        "conv2d_prepared(Tensor input, Tensor weight, Tensor prepared, Tensor? bias=None, "
        f"{_GEOMETRY}) -> Tensor"
    )
    autocast = False

    def outputs(self, *arguments: Any) -> tuple[Output, ...]:
        input, weight, _, *rest = arguments
        return super().outputs(input, weight, *rest)

    def torch(self, *arguments: Any) -> Tensor:
        input, weight, _, *rest = arguments
        return super().torch(input, weight, *rest)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return inputs[:2], inputs[4:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        x, w, *bias = super().backward((needs[0], needs[1], *needs[3:]), grad, tensors, constants)
        return (x, w, None, *bias)[: len(needs)]

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        return super().jvp((*tangents[:2], *tangents[3:]), tensors, constants)

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        raise NotImplementedError("conv2d_prepared: expected no vmap, got a batch of calls")


conv2d_prepare = define(Conv2dPrepare)
conv2d_prepared = define(Conv2dPrepared)
