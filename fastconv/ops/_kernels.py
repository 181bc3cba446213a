"""Kernels of the torch ops where the compiled ones do not serve: NumPy, Numba, torch's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._check import Output, dtype_name, expect
from fastconv.ops._define import Op, allocate
from fastconv.ops._layout import empty
from fastconv.reference._numba_cuda import Queue, obstacle

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

    def by_numba_cuda(*arguments: Any) -> Any:
        expect_one_device(op, arguments)
        results = allocate(op, *arguments)
        first = arguments[0]

        def zeros(shape: tuple[int, ...]) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=first.device)

        run_numba_cuda(
            op,
            Queue(*_current_stream(first.device), zeros),
            dtype_name(first),
            tuple(map(_bits, results if isinstance(results, tuple) else (results,))),
            tuple(map(_bits, arguments)),
        )
        return results

    def refuse(*arguments: Any) -> Any:
        raise RuntimeError(f"{op.name}: expected CPU tensors with the {backend} backend, got CUDA")

    if backend == "torch":
        return by_torch
    if device == "CPU":
        return by_reference
    return by_numba_cuda if backend == "numba" else refuse


def expect_one_device(op: Op, arguments: tuple[Any, ...]) -> None:
    """Raises RuntimeError unless all tensors lie on the device of the first."""
    first, *others = (value for value in arguments[: op.tensors] if value is not None)
    for other in others:
        law = f"all tensors on the device of the first, {first.device}"
        expect(other.device == first.device, op.name, law, other.device)


def run_numba_cuda(
    op: Op, queue: Queue, dtype: str, results: tuple[Any, ...], arguments: tuple[Any, ...]
) -> None:
    """Queues the Numba-CUDA twin of the reference: arrays with half types as int16."""
    if reason := obstacle():
        law = "a CUDA device that fastconv's kernels or Numba's can run on"
        raise RuntimeError(f"{op.name}: expected {law}, got: {reason}")
    getattr(_cuda_module(op), op.name)(queue, dtype, results, *arguments)


def _cuda_module(op: Op) -> Any:
    """Where the op's Numba-CUDA kernels are; not every family has them."""
    name = f"fastconv.reference.{op.family}_cuda"
    module = importlib.import_module(name) if importlib.util.find_spec(name) else None
    if module is None or not hasattr(module, op.name):
        law = "a CUDA device that fastconv's kernels can run on"
        raise RuntimeError(f"{op.name}: expected {law}, got another, for which Numba has no kernel")
    return module


def _current_stream(device: Any) -> tuple[int, int]:
    """The device's number and the stream on which torch's next work on it is queued."""
    if device.type == "cpu":  # Numba's simulator
        return 0, 0
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _bits(value: Any) -> Any:
    """What Numba can look at: no graph, half types as their bits."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    value = value.view(torch.int16) if value.dtype in (torch.bfloat16, torch.float16) else value
    return value.numpy() if value.is_cpu else value


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
