"""Small calls on the device for compute-sanitizer: every operation, forward and backward.

Each is checked against the reference too. The sanitizer slows kernels down a hundredfold: the
calls stop after the seconds given, and the last line says how many of how many ran.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last")


def calls() -> list[tuple[Any, ...]]:
    """Return (operation, case, dtype, layout), operations in turn; needs `tests` on the path."""
    from operations import OPERATIONS

    def of(operation: Any) -> Iterator[tuple[Any, ...]]:
        for dtype, layout in itertools.product(DTYPES, LAYOUTS):
            for case in operation.cases("smooth"):
                yield operation, case, dtype, layout

    in_turn = itertools.zip_longest(*map(of, OPERATIONS.values()))
    return [call for group in in_turn for call in group if call is not None]


def run(call: tuple[Any, ...], device: str) -> None:
    """Run one call and its gradients, and check the answers."""
    from operations.base import as_truth

    operation, case, dtype, layout = call
    names = operation.present(operation.shapes(case))
    tensors = operation.tensors(case, dtype, layout, requires_grad=names, device=device)
    tensors = {n: t if t is None else t.detach().requires_grad_() for n, t in tensors.items()}
    outputs = operation.call(case, tensors)
    grad = torch.ones_like(outputs[0])
    gradients = torch.autograd.grad(outputs[0], [tensors[name] for name in names], grad)
    actual = tuple(output.detach().cpu() for output in outputs)
    operation.check_outputs(case, actual, operation.truth(case, tensors), case.name)
    arrays = {name: as_truth(tensor) for name, tensor in tensors.items()}
    truth = operation.reference_gradients(case, arrays, as_truth(grad))
    for name, gradient in zip(names, gradients, strict=True):
        operation.check_gradient(case, name, gradient.cpu(), truth[name], case.name)


def run_all(device: str, seconds: float) -> None:
    """Run until the time is spent; rehearsals run one call of each operation."""
    todo, end, done = calls(), time.monotonic() + seconds, 0
    few = len({id(call[0]) for call in todo})
    for call in todo if device == "cuda" else todo[:few]:
        if done >= few and time.monotonic() > end:
            break
        run(call, device)
        done += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{done} of {len(todo)} small calls ran, answers right")
