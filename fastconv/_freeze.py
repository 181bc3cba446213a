"""Frozen modules: weights arranged once for the kernels, not in every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from fastconv import _backend, _native
from fastconv import _torch_private as private
from fastconv._arguments import conv2d_geometry
from fastconv._torch_private import torch
from fastconv.ops.conv2d_prepared import conv2d_prepare, conv2d_prepared

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    M = TypeVar("M", bound=Module)

_ATTRIBUTE = "frozen_weight"  # of every layer that can be frozen
_MOST_SHAPES = 64  # of inputs whose arranged weight is remembered
_DESCRIPTION = (
    72  # leading bytes that tell one arrangement of a weight from another: kernels/conv2d.h
)


class FrozenWeight:
    """What a frozen convolution remembers: per shape of input, the weight arranged for it.

    It belongs to one tensor in one state; a copy of the module starts with an empty one.
    """

    def __init__(self) -> None:
        self._clear(None)

    def _clear(self, state: Any) -> None:
        self._state = state
        self._by_shape: dict[Any, Tensor] = {}

    def __deepcopy__(self, memo: Any) -> FrozenWeight:
        return FrozenWeight()

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenWeight, ()

    def conv2d(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]
    ) -> Tensor | None:
        """``conv2d`` without gradients, or None where the arranged weight does not serve."""
        if (
            type(input) is not torch.Tensor
            or not (input.is_cpu and weight.is_cpu)
            or (torch.is_grad_enabled() and not torch.is_inference_mode_enabled())
            or torch.compiler.is_dynamo_compiling()
            or _backend.current != "native"
            or not _native.torch_is_loaded
            or private.autocast_is_active()
            or private.functorch_is_active()
            or private.dispatch_modes()
            or private.is_tracing()
        ):
            return None
        if isinstance(geometry[1], str):
            geometry = conv2d_geometry("conv2d", weight.shape, *geometry)
        state = weight.data_ptr(), 0 if weight.is_inference() else weight._version
        if state != self._state:
            self._clear(state)
        key = input.shape, input.stride(), input.dtype, weight.stride()
        prepared = self._by_shape.get(key)
        if prepared is None:
            prepared = self._prepare(key, input, weight, geometry)
        result: Tensor = conv2d_prepared.call(input, weight, prepared, bias, *geometry)
        return result

    def _prepare(
        self, key: Any, input: Tensor, weight: Tensor, geometry: tuple[Any, ...]
    ) -> Tensor:
        prepared: Tensor = conv2d_prepare.call(input, weight, *geometry)
        for known in self._by_shape.values():
            if known.numel() == prepared.numel() and torch.equal(
                known[:_DESCRIPTION], prepared[:_DESCRIPTION]
            ):
                prepared = known
                break
        if len(self._by_shape) >= _MOST_SHAPES:
            self._by_shape.clear()
        self._by_shape[key] = prepared
        return prepared


def freeze(module: M) -> M:
    """Lets the fastconv layers of a module in eval mode arrange their weights once, not per call.

    A frozen convolution remembers its weight in the form that its algorithm reads, per shape of
    input. That serves calls on CPU that record no gradients (``torch.inference_mode()`` or
    ``torch.no_grad()``); all others are computed as before. ``module.train()`` and :func:`thaw`
    end it. A new weight (``load_state_dict``, an optimizer's step, another tensor in its place, a
    moving average written through ``.data``) is noticed and arranged anew; what is not is a write
    through ``.data`` to a few single elements: freeze again after it.

    Args:
        module: in eval mode; itself or any layer inside may be fastconv's.

    Returns:
        The same module.

    Raises:
        ValueError: the module is in training mode.

    Example:
        >>> import torch
        >>> import fastconv
        >>> layer = fastconv.freeze(fastconv.Conv2d(8, 16, 3, padding=1).eval())
        >>> with torch.inference_mode():
        ...     layer(torch.randn(1, 8, 32, 32)).shape
        torch.Size([1, 16, 32, 32])
    """
    if module.training:
        raise ValueError("freeze: expected a module in eval mode, got one in training mode")
    for layer in module.modules():
        if hasattr(type(layer), _ATTRIBUTE):
            setattr(layer, _ATTRIBUTE, FrozenWeight())
    return module


def thaw(module: M) -> M:
    """Undoes :func:`freeze`: weights are arranged in every call again.

    Args:
        module: frozen or not.

    Returns:
        The same module.

    Example:
        >>> import fastconv
        >>> layer = fastconv.freeze(fastconv.Conv2d(8, 16, 3).eval())
        >>> fastconv.thaw(layer).frozen_weight is None
        True
    """
    for layer in module.modules():
        if hasattr(type(layer), _ATTRIBUTE):
            setattr(layer, _ATTRIBUTE, None)
    return module
