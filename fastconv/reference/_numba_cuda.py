"""What the Numba-CUDA fallback shares: launches on the caller's stream, and half types as bits.

Kernels get arrays that show ``__cuda_array_interface__``, of any strides; on Numba's simulator
(``NUMBA_ENABLE_CUDASIM=1``) NumPy arrays. float16 and bfloat16 come as int16, their bits: Numba has
no bfloat16. Sums are formed in float64, in an order that the shape alone decides, and rounded once,
to nearest even.

No kernel calls ``min`` or ``max``: Numba 0.68 cannot compile them for CUDA.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# (mantissa bits, exponent bits)
HALVES = {"float16": (10, 5), "bfloat16": (7, 8)}
_THREADS = 128
_FEWEST_BLOCKS = 128  # below it Numba warns; a thread without an element returns at once


@dataclass(frozen=True)
class Queue:
    """Where kernels run: a device, the ``cudaStream_t`` that the caller works on, and memory."""

    device: int
    stream: int
    # Memory of the caller's own allocator: a float64 array of zeros of a shape.
    zeros: Callable[[tuple[int, ...]], Any]

    def launch(self, kernel: Any, count: int, *arguments: Any) -> None:
        """Queues a kernel that strides over ``count`` elements."""
        if count == 0:
            return
        cuda = _cuda()
        if is_simulated():
            kernel[2, 2](*map(_simulated, arguments))
            return
        blocks = min(max(-(-count // _THREADS), _FEWEST_BLOCKS), 2**31 - 1)
        with cuda.gpus[self.device]:
            stream = cuda.external_stream(self.stream) if self.stream else 0
            kernel[blocks, _THREADS, stream](*map(_seen, arguments))


def _cuda() -> Any:
    """Numba's CUDA target, imported at the first call."""
    return importlib.import_module("numba.cuda")


def is_simulated() -> bool:
    """Whether kernels run on NumPy arrays, thread by thread in Python."""
    return bool(importlib.import_module("numba").config.ENABLE_CUDASIM)


def obstacle() -> str | None:
    """Why Numba cannot use CUDA here, in words; None if it can."""
    try:
        cuda = _cuda()
    except ImportError as error:
        return str(error)
    if cuda.is_available():
        return None
    return str(cuda.cuda_error() or "Numba finds no CUDA device")


def _seen(argument: Any) -> Any:
    """Memory of another package as Numba's array; no copy, no synchronisation."""
    if not hasattr(argument, "__cuda_array_interface__"):
        return argument
    return _cuda().as_cuda_array(argument, sync=False)


def _simulated(argument: Any) -> Any:
    """Memory of any strides, in place: the simulator would copy, and only what is contiguous."""
    if not isinstance(argument, np.ndarray):
        return argument
    arrays = importlib.import_module("numba.cuda.simulator.cudadrv.devicearray")
    return arrays.FakeCUDAArray(argument)


def per_dtype(make: Callable[..., Any]) -> Callable[[str], Any]:
    """Compiles, once per dtype, the kernel that ``make(load, store)`` returns; ``cuda`` in its
    module becomes Numba's.
    """

    @functools.cache
    def kernel(dtype: str) -> Any:
        cuda, load, store = _cuda(), _same, _same
        make.__globals__["cuda"] = cuda
        if dtype in HALVES:
            load, store = _load_half(*HALVES[dtype]), _store_half(*HALVES[dtype])
        return cuda.jit(make(cuda.jit(device=True)(load), cuda.jit(device=True)(store)))

    return kernel


def lowest(dtype: str) -> Any:
    """What is below every element."""
    if dtype in HALVES or np.dtype(dtype).kind == "f":
        return -math.inf
    return int(np.iinfo(dtype).min)


def batched(array: Any) -> Any:
    """[C, H, W] as [1, C, H, W]."""
    return array[None] if len(array.shape) == 3 else array


def _same(value):  # type: ignore[no-untyped-def]
    return value


def _load_half(mantissa_bits: int, exponent_bits: int) -> Callable[[Any], Any]:
    """A function from bits to float64."""
    most, bias = 2**exponent_bits - 1, 2 ** (exponent_bits - 1) - 1
    hidden = 2**mantissa_bits

    def load(bits):  # type: ignore[no-untyped-def]
        word = np.int64(bits) & 0xFFFF
        exponent = (word >> mantissa_bits) & most
        mantissa = word & (hidden - 1)
        if exponent == most:
            value = math.inf if mantissa == 0 else math.nan
        elif exponent == 0:
            value = math.ldexp(float(mantissa), 1 - bias - mantissa_bits)
        else:
            value = math.ldexp(float(hidden + mantissa), int(exponent - bias - mantissa_bits))
        return -value if word >> 15 else value

    return load


def _store_half(mantissa_bits: int, exponent_bits: int) -> Callable[[Any], Any]:
    """A function from float64 to bits, rounded to nearest even, as int16 holds them."""
    most, bias = 2**exponent_bits - 1, 2 ** (exponent_bits - 1) - 1
    infinity = most << mantissa_bits

    def store(value):  # type: ignore[no-untyped-def]
        size = abs(value)
        if value != value:
            word = infinity + (1 << (mantissa_bits - 1))
        elif size == math.inf:
            word = infinity
        elif size == 0.0:
            word = 0
        else:
            # size = fraction * 2^power, 1/2 <= fraction < 1; below the least exponent the unit
            # stays, and the numbers are subnormal. A carry out of the mantissa counts the exponent.
            _, power = math.frexp(size)
            exponent = np.int64(power) - 1 + bias
            if exponent < 1:
                exponent = np.int64(1)
            scaled = math.ldexp(size, int(mantissa_bits + bias - exponent))
            units = np.int64(math.floor(scaled))
            rest = scaled - float(units)
            if rest > 0.5 or (rest == 0.5 and units & 1 == 1):
                units += 1
            word = ((exponent - 1) << mantissa_bits) + units
            if word > infinity:
                word = infinity
        negative = math.copysign(1.0, value) < 0.0
        return word - 0x8000 if negative else word

    return store
