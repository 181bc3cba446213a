"""Whole models: torch.nn's layers become fastconv's in place, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fastconv import nn
from fastconv._freeze import freeze, thaw
from fastconv._torch_private import torch
from fastconv.nn._recurrent import Compilable

if TYPE_CHECKING:
    from torch.nn import Module

    M = TypeVar("M", bound=Module)

# Of an accelerated layer: the class it had.
_ORIGINAL = "_class_before_fastconv"
# torch.nn's classes that fastconv has a subclass of.
_COUNTERPARTS = {getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__}


@dataclass(frozen=True)
class Layer:
    """What became of one layer of a model."""

    name: str  # as in ``model.named_modules()``
    kind: str  # its class in torch
    swapped: bool
    why: str  # a word on what was not swapped


@dataclass(frozen=True)
class Report:
    """What :func:`accelerate` did to a model, layer by layer; as text, a table."""

    layers: tuple[Layer, ...]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def swapped(self) -> tuple[Layer, ...]:
        """The layers that fastconv computes."""
        return tuple(layer for layer in self.layers if layer.swapped)

    def __str__(self) -> str:
        lines = [f"fastconv computes {len(self.swapped)} of {len(self)} layers"]
        names = max((len(layer.name) for layer in self.layers), default=0)
        kinds = max((len(layer.kind) for layer in self.layers), default=0)
        for layer in self.layers:
            said = "fastconv" if layer.swapped else f"torch: {layer.why}"
            lines.append(f"  {layer.name or '(the model)':{names}}  {layer.kind:{kinds}}  {said}")
        return "\n".join(lines)


def _obstacle(layer: Module) -> str | None:
    """Why a layer stays as it is; None where fastconv's class takes its place."""
    kind = type(layer)
    base = next((base for base in _COUNTERPARTS if isinstance(layer, base)), None)
    if base is None:
        return "fastconv has no such layer"
    if isinstance(layer, _COUNTERPARTS[base]):
        return "it was fastconv's before"
    if isinstance(layer, torch.nn.modules.lazy.LazyModuleMixin):
        return "its shape is not known yet: run the model once, then accelerate it again"
    if torch.nn.utils.parametrize.is_parametrized(layer):
        return "its parameters are computed (torch.nn.utils.parametrize)"
    if kind is not base:
        return f"a subclass of torch.nn.{base.__name__}"
    if "forward" in vars(layer) or "_conv_forward" in vars(layer):
        return "its forward is replaced"
    return None


def accelerate(model: M) -> M:
    """Lets fastconv compute the layers of a model that it has, whatever the model.

    Layers whose class is exactly one of torch.nn's become fastconv's class of the same name, in
    place: they stay the same objects, with the same parameters, buffers, hooks and ``state_dict``,
    so that optimizers, references and tied weights hold. A model in eval mode is frozen, too (see
    :func:`freeze`); a model in training mode trains. Subclasses, lazy and parametrized layers and
    those whose forward is replaced are left alone: :func:`report` names them.

    Args:
        model: any module.

    Returns:
        The same module.

    Raises:
        TypeError: not a ``torch.nn.Module``.

    Example:
        >>> import torch
        >>> import fastconv
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> print(fastconv.report(fastconv.accelerate(model)))
        fastconv computes 1 of 2 layers
          0  Conv2d  fastconv
          1  ReLU    torch: fastconv has no such layer
    """
    _expect_module("accelerate", model)
    for layer in model.modules():
        if _obstacle(layer) is None:
            kind = type(layer)
            setattr(layer, _ORIGINAL, kind)
            layer.__class__ = _COUNTERPARTS[kind]
            if isinstance(layer, Compilable):
                layer.prepare_compiler()
    return model if model.training else freeze(model)


def restore(model: M) -> M:
    """Undoes :func:`accelerate`: layers that it swapped are torch's again, and nothing is frozen.

    Args:
        model: accelerated or not.

    Returns:
        The same module.

    Raises:
        TypeError: not a ``torch.nn.Module``.

    Example:
        >>> import torch
        >>> import fastconv
        >>> model = fastconv.accelerate(torch.nn.Conv2d(3, 8, 3))
        >>> type(fastconv.restore(model)) is torch.nn.Conv2d
        True
    """
    _expect_module("restore", model)
    thaw(model)
    for layer in model.modules():
        original = vars(layer).pop(_ORIGINAL, None)
        if original is not None:
            # What freezing left is not torch's.
            vars(layer).pop("frozen_weight", None)
            layer.__class__ = original
    return model


def report(model: Module) -> Report:
    """Says which layers of a model fastconv computes, which not, and why.

    Args:
        model: accelerated or not.

    Returns:
        A :class:`Report` over the layers that hold no others and those that fastconv has.

    Raises:
        TypeError: not a ``torch.nn.Module``.

    Example:
        >>> import torch
        >>> import fastconv
        >>> [layer.why for layer in fastconv.report(torch.nn.Conv2d(3, 8, 3))]
        ['not accelerated']
    """
    _expect_module("report", model)
    layers = []
    for name, layer in model.named_modules():
        holds_others = next(layer.children(), None) is not None
        if holds_others and not isinstance(layer, tuple(_COUNTERPARTS)):
            continue
        ours = isinstance(layer, tuple(_COUNTERPARTS.values()))
        kind = vars(layer).get(_ORIGINAL, type(layer)).__name__
        why = "" if ours else _obstacle(layer) or "not accelerated"
        layers.append(Layer(name, kind, ours, why))
    return Report(tuple(layers))


def _expect_module(function: str, model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function}: expected a torch.nn.Module, got {type(model).__name__}")
