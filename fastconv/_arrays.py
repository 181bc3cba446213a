"""The NumPy side: NumPy, CuPy and any DLPack array in, the same kind out. Needs no torch."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv import _backend
from fastconv._torch_private import HAS_TORCH, torch
from fastconv.ops._check import dtype_name, expect
from fastconv.ops._define import OPS, Op
from fastconv.ops._kernels import expect_one_device, run_numba_cuda
from fastconv.reference._numba_cuda import HALVES, Queue

_NUMBERS = "biufcV"  # kinds; V: bfloat16 of ml_dtypes
_LONG_DOUBLES = "gG"  # characters; torch.from_numpy does not know them


def call(name: str, *arguments: Any) -> Any:
    """Runs the op ``name`` on arrays with the backend in use."""
    op = OPS[name]
    if is_cupy(arguments[0]):
        return _call_on_cuda(op, *arguments)
    arrays = tuple(_checked(name, value) for value in arguments[: op.tensors])
    dtype = dtype_name(arrays[0])
    if dtype not in op.dtypes:
        raise NotImplementedError(
            f"{name}: expected a dtype of {', '.join(sorted(op.dtypes))}, got {dtype}"
        )
    legal = (*arrays, *arguments[op.tensors :])
    op.outputs(*legal)
    results = _function(op)(*legal)
    return _like(arguments[0], results)


def is_cupy(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def namespace_of(array: Any) -> Any:
    """The package whose functions take the array: NumPy, CuPy, or what the array itself names."""
    if isinstance(array, np.ndarray):
        return np
    return importlib.import_module("cupy") if is_cupy(array) else array.__array_namespace__()


def core_serves(array: Any) -> bool:
    """Whether the compiled part has kernels for the device on which ``array`` lies."""
    return not is_cupy(array) or _backend.serves_cuda(array.device.id)


def _call_on_cuda(op: Op, *arguments: Any) -> Any:
    """CuPy arrays, by Numba on CuPy's current stream."""
    cupy: Any = importlib.import_module("cupy")
    arrays = [value for value in arguments[: op.tensors] if value is not None]
    for value in arrays:
        expect(is_cupy(value), op.name, "CuPy arrays alone", f"{type(value).__name__} among them")
    dtype = dtype_name(arrays[0])
    if dtype not in op.dtypes:
        names = ", ".join(sorted(op.dtypes))
        raise NotImplementedError(f"{op.name}: expected a dtype of {names}, got {dtype}")
    if _backend.current not in ("native", "numba"):
        got = f"{_backend.current} and CuPy arrays"
        raise RuntimeError(f"{op.name}: expected the backend native or numba, got {got}")
    expect_one_device(op, arguments)
    promised = op.outputs(*arguments)
    with arrays[0].device:
        results = tuple(cupy.empty(each.shape, _name(each.dtype) or dtype) for each in promised)
        stream = cupy.cuda.get_current_stream().ptr
        queue = Queue(arrays[0].device.id, stream, functools.partial(cupy.zeros, dtype="float64"))
        halves = (tuple(map(_bits, each)) for each in (results, arguments))
        run_numba_cuda(op, queue, dtype, *halves)
    return results if len(results) > 1 else results[0]


def _name(dtype: Any) -> str | None:
    """A promised dtype, which is torch's where torch is installed."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _bits(value: Any) -> Any:
    """float16, which Numba takes as its bits."""
    is_half = is_cupy(value) and dtype_name(value) in HALVES
    return value.view("int16") if is_half else value


def _function(op: Any) -> Callable[..., Any]:
    if _backend.current != "torch":
        from fastconv.ops._kernels import reference

        return reference(op, _backend.current)

    def by_torch(*arguments: Any) -> Any:
        tensors = (
            torch.from_numpy(np.ascontiguousarray(value))
            if isinstance(value, np.ndarray)
            else value
            for value in arguments
        )
        result = op.torch(*tensors)
        if isinstance(result, tuple):
            return tuple(tensor.numpy() for tensor in result)
        return result.numpy()

    return by_torch


def expect_array(op: str, name: str, value: Any) -> None:
    """Raises TypeError, as torch does for what is no tensor, unless ``value`` is an array."""
    is_tensor = HAS_TORCH and isinstance(value, torch.Tensor)
    if is_tensor or not (isinstance(value, np.ndarray) or hasattr(value, "__dlpack__")):
        raise TypeError(
            f"{op}: expected {name} to be an array as the others are (NumPy, CuPy, DLPack), "
            f"got {type(value).__name__}"
        )


def _checked(op: str, value: Any) -> Any:
    """As NumPy array of native byte order; the errors are those of torch.from_numpy."""
    if value is None:
        return None
    expect_array(op, "every array", value)
    array = value if isinstance(value, np.ndarray) else np.from_dlpack(value)
    dtype = array.dtype
    if dtype.kind not in _NUMBERS or dtype.names is not None or dtype.char in _LONG_DOUBLES:
        raise TypeError(f"{op}: expected an array of numbers, got dtype {array.dtype}")
    if not array.dtype.isnative:
        raise ValueError(f"{op}: expected native byte order, got dtype {array.dtype.str}")
    return array


def _like(first: Any, results: Any) -> Any:
    """NumPy results as the kind of array that ``first`` is."""
    if isinstance(first, np.ndarray):
        return results
    if isinstance(results, tuple):
        return tuple(_like(first, result) for result in results)
    return first.__array_namespace__().from_dlpack(results)
