"""Runs the kernels of probe_*.cu and planted_asynchronous.cu: one block or a few, on arrays."""

from __future__ import annotations

import ctypes

import numpy as np

import cuda_emulator


def aligned(size, dtype=np.uint8, fill=0xFF):
    """An array at an address that is a multiple of 128 bytes."""
    room = np.full(size * np.dtype(dtype).itemsize + 128, fill, np.uint8)
    start = -room.ctypes.data % 128
    return room[start : start + size * np.dtype(dtype).itemsize].view(dtype)


def random_bytes(size):
    array = aligned(size)
    array[:] = np.random.default_rng(size).integers(0, 256, size)
    return array


def run(name, source, target, numbers=(), tensor_map=None, read=(), write=(), scratch=False):
    values = (ctypes.c_int64 * 12)(*numbers)
    targets = () if target is None else (target,)
    cuda_emulator.call(
        "emulate_probe",
        *(name.encode(), source, target, values, tensor_map),
        read=read if source is None else (source, *read),
        write=write if scratch else (*targets, *write),
        scratch=targets if scratch else (),
    )
    return target


def window_map(tensor, corners, steps, channels, pixels, swizzle):
    """A map of a dense NHWC array through a window; corners and steps along w, then h."""
    tensor_map = aligned(128)
    dtype = cuda_emulator.DTYPES.index(tensor.dtype.name)
    error = cuda_emulator.library().emulate_window_map(
        *(ctypes.c_void_p(tensor_map.ctypes.data), dtype, ctypes.c_void_p(tensor.ctypes.data)),
        (ctypes.c_uint64 * 4)(*tensor.shape[::-1]),
        (ctypes.c_uint64 * 3)(*tensor.strides[2::-1]),
        *((ctypes.c_int * 4)(*corners[0], *corners[1]), (ctypes.c_uint32 * 2)(*steps)),
        *(channels, pixels, swizzle),
    )
    assert error is None, error
    return tensor_map


def tiled_map(tensor, box, swizzle):
    """A map of a dense array of uint8, float16 or float32."""
    rank = tensor.ndim
    tensor_map = aligned(128)
    dtype = cuda_emulator.DTYPES.index(tensor.dtype.name)
    error = cuda_emulator.library().emulate_tiled_map(
        *(ctypes.c_void_p(tensor_map.ctypes.data), dtype, ctypes.c_void_p(tensor.ctypes.data)),
        *(rank, (ctypes.c_uint64 * rank)(*tensor.shape[::-1])),
        (ctypes.c_uint64 * rank)(*tensor.strides[-2::-1]),
        *((ctypes.c_uint32 * rank)(*box), swizzle),
    )
    assert error is None, error
    return tensor_map
