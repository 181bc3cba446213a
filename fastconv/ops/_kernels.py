"""Kernels of the torch ops where the compiled ones do not serve: NumPy, Numba, torch's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._check import Output
from fastconv.ops._define import Op, allocate
from fastconv.ops._layout import empty

if TYPE_CHECKING:
    from torch import Tensor


def reference(op: Op, backend: str) -> Callable[..., Any]:
    """The NumPy function of ``fastconv.reference``, or its Numba twin."""
    module = importlib.import_module(f"fastconv.reference.{op.family}")
    function: Callable[..., Any] = getattr(
        module, op.name + ("_numba" if backend == "numba" else "")
    )
    return function


def make_kernel(op: Op, backend: str, device: str) -> Callable[..., Any]:
    """The function that serves ``torch.ops.fastconv.<op>`` for CPU or CUDA tensors."""

    def by_torch(*arguments: Any) -> Any:
        outputs = op.outputs(*arguments)
        results = op.torch(*arguments)
        each = results if isinstance(results, tuple) else (results,)
        like = arguments[0]
        laid = tuple(_laid_out(a, b, like) for a, b in zip(each, outputs, strict=True))
        return laid if isinstance(results, tuple) else laid[0]

    def by_reference(*arguments: Any) -> Any:
        results = allocate(op, *arguments)
        arrays = reference(op, backend)(*(_to_numpy(value) for value in arguments))
        return _into(results, arrays)

    def refuse(*arguments: Any) -> Any:
        raise RuntimeError(f"{op.name}: expected CPU tensors with the {backend} backend, got CUDA")

    if backend == "torch":
        return by_torch
    return by_reference if device == "CPU" else refuse


def _to_numpy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _laid_out(tensor: Tensor, output: Output, like: Tensor) -> Tensor:
    """``tensor`` with exactly the strides that the fake kernel promises."""
    promised = empty(output, like.new_empty(0, device="meta"))
    if tensor.stride() == promised.stride() and tensor.dtype == promised.dtype:
        return tensor
    return empty(output, like).copy_(tensor)


def _into(results: Any, values: Any) -> Any:
    """Copies what was computed into tensors of the promised layout and dtype."""
    if isinstance(results, tuple):
        return tuple(_into(result, value) for result, value in zip(results, values, strict=True))
    tensor: Tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    return results.copy_(tensor)
