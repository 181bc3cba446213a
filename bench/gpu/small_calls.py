"""Small calls of every operation, forward and backward: for compute-sanitizer and for device laws.

The cases are those of `fastconv.reference`; the truth is torch's own answer on the CPU in float64.
The sanitizer slows kernels down a hundredfold: `run_all` stops after the seconds given, and its
last line says how many of how many calls ran.
"""

from __future__ import annotations

import importlib
import itertools
import math
import pkgutil
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fastconv.functional as FC
import fastconv.reference
from fastconv.testing import assert_close, make_input

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last")
LARGEST = 4000  # elements


@dataclass(frozen=True)
class Call:
    """One call of a function that torch has too."""

    operation: str
    case: Any
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, operation: str, case: Any, *how: Any) -> Call:
        """Read the tensors' shapes off a case."""
        names = [name for name in ("input", "weight") if hasattr(case, name)]
        shapes = {name: getattr(case, name) for name in names}
        if getattr(case, "bias", False):
            shapes["bias"] = case.weight[:1]
        return cls(operation, case, *how, shapes=shapes)

    def __str__(self) -> str:
        """Return what a failure is reported under."""
        return f"{self.operation}, {self.case.name}, {self.dtype}, {self.layout}"

    @property
    def is_small(self) -> bool:
        """Say whether there is something to compute, not much, and whether torch computes it."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        if not all(sizes) or sum(sizes) > LARGEST:
            return False
        function = getattr(torch.nn.functional, self.operation)
        try:
            output = function(*map(make_input, self.shapes.values()), **self.case.kwargs)
        except (RuntimeError, TypeError):  # beyond torch's arguments: the laws of tests/ cover it
            return False
        # For a window that lies wholly in the padding torch's gradient writes out of bounds, for no
        # windows at all some of its gradients refuse.
        return output.numel() > 0 and not output.isinf().any()

    def tensors(self, device: str, seed: int = 0) -> list[Tensor]:
        """Return fresh leaves that want their gradients."""
        made = [
            make_input(
                shape, self.dtype, self.layout if len(shape) == 4 else "contiguous", seed + n
            )
            for n, shape in enumerate(self.shapes.values())
        ]
        return [tensor.to(device).requires_grad_() for tensor in made]

    def answer(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """Return fastconv's output and its gradients for a gradient of ones."""
        return self._with_gradients(getattr(FC, self.operation), tensors)

    def truth(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """Return torch's, in float64 on the CPU."""
        wide = [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]
        return self._with_gradients(getattr(torch.nn.functional, self.operation), wide)

    def _with_gradients(self, function: Any, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        output = function(*tensors, **self.case.kwargs)
        gradients = torch.autograd.grad(output, tensors, torch.ones_like(output))
        return (output.detach(), *gradients)

    def check(self, answer: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> None:
        """Compare; the longest sum there can be goes over every element of the largest tensor."""
        longest = max(output.numel() for output in truth)
        for name, actual, wanted in zip(("output", *self.shapes), answer, truth, strict=True):
            context = f"{self}: {name}"
            assert_close(actual.cpu(), wanted, reduction_length=longest, context=context)


def calls(dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Call]:
    """Return the small calls, operations in turn."""
    lists = []
    for module in pkgutil.iter_modules(fastconv.reference.__path__):
        reference = importlib.import_module(f"fastconv.reference.{module.name}")
        if not hasattr(reference, "CASES") or not hasattr(FC, module.name):
            continue
        small = [case for case in reference.CASES if Call.of(module.name, case).is_small]
        how = itertools.product(dtypes, LAYOUTS)
        lists.append([Call.of(module.name, case, *h) for h in how for case in small])
    in_turn = itertools.zip_longest(*lists)
    return [call for group in in_turn for call in group if call is not None]


def run_all(device: str, seconds: float) -> None:
    """Run until the time is spent; a rehearsal runs one call of each operation."""
    todo, end, done = calls(), time.monotonic() + seconds, 0
    few = len({call.operation for call in todo})
    for call in todo if device == "cuda" else todo[:few]:
        if done >= few and time.monotonic() > end:
            break
        tensors = call.tensors(device)
        call.check(call.answer(tensors), call.truth(tensors))
        done += 1
    print(f"{done} of {len(todo)} small calls ran, answers right")
