"""conv2d with scale, bias, residual and activation in its last step: what fused inference calls.

``conv2d_fused(input, weight, bias, scale, residual, prepared, activation, ...)`` is
``activation(scale[k] * conv2d(input, weight) + bias[k] + residual)``, rounded once; see
fastconv/reference/conv2d_fused.py. It has no derivative, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._check import Output, expect, expect_alike, expect_shape
from fastconv.ops._define import Grads, Unfold, define
from fastconv.ops._layout import empty
from fastconv.ops.conv2d import _GEOMETRY, Conv2d
from fastconv.reference.conv2d_fused import ACTIVATIONS

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = tuple(ACTIVATIONS)


class Conv2dFused(Conv2d):
    """conv2d and what stands behind it in a network, for inference."""

    family = "conv2d_fused"
    schema = (
        "conv2d_fused(Tensor input, Tensor weight, Tensor? bias=None, Tensor? scale=None, "
        f"Tensor? residual=None, Tensor? prepared=None, int activation=0, {_GEOMETRY}) -> Tensor"
    )
    autocast = False

    def outputs(
        self,
        input: Any,
        weight: Any,
        bias: Any = None,
        scale: Any = None,
        residual: Any = None,
        prepared: Any = None,
        activation: int = 0,
        *geometry: Any,
    ) -> tuple[Output, ...]:
        (output,) = super().outputs(input, weight, bias, *geometry)
        law = f"activation in [0, {len(_NAMES)}), of {', '.join(_NAMES)}"
        expect(0 <= activation < len(_NAMES), self.name, law, activation)
        if scale is not None:
            expect_shape(self.name, "scale", scale.shape, weight.shape[:1])
            expect_alike(self.name, "scale", scale, "input", input)
        if residual is not None:
            expect_shape(self.name, "residual", residual.shape, output.shape)
            expect_alike(self.name, "residual", residual, "input", input)
            if hasattr(residual, "stride") and residual.numel() > 0:
                promised = empty(output, input.new_empty(0, device="meta")).stride()
                sizes, strides = residual.shape, residual.stride()
                alike = all(
                    n <= 1 or a == b for n, a, b in zip(sizes, strides, promised, strict=True)
                )
                law = f"residual laid out as the output, strides {promised}"
                expect(alike, self.name, law, tuple(strides))
        return (output,)

    def torch(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        scale: Tensor | None = None,
        residual: Tensor | None = None,
        prepared: Tensor | None = None,
        activation: int = 0,
        *geometry: Any,
    ) -> Tensor:
        result = super().torch(input, weight, None, *geometry)
        if scale is not None:
            result = result * scale[:, None, None]
        if bias is not None:
            result = result + bias[:, None, None]
        if residual is not None:
            result = result + residual
        if activation == 0:
            return result
        activated: Tensor = getattr(torch.nn.functional, _NAMES[activation])(result)
        return activated

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        return (), ()

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        raise RuntimeError(f"{self.name}: expected no derivative to be asked for, got a gradient")

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        raise RuntimeError(f"{self.name}: expected no derivative to be asked for, got a tangent")

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        raise NotImplementedError(f"{self.name}: expected no vmap, got a batch of calls")


conv2d_fused = define(Conv2dFused)
