"""Compiles every Numba-CUDA kernel for sm_80, without a device: run in a process of its own."""

import types as python_types

import numba.cuda.dispatcher
from numba import cuda, types

from fastconv.reference import conv2d_cuda, max_pool2d_cuda

KINDS = {
    "float32": types.float32,
    "float64": types.float64,
    "float16": types.int16,  # its bits
    "bfloat16": types.int16,
    "uint8": types.uint8,
    "int8": types.int8,
    "int16": types.int16,
    "int32": types.int32,
    "int64": types.int64,
}
CAPABILITY = (8, 0)


def array(kind, ndim=4):
    """Of any strides."""
    return types.Array(kind, ndim, "A")


def main() -> None:
    # Device functions are compiled for the current device, of which there is none.
    device = python_types.SimpleNamespace(compute_capability=CAPABILITY)
    numba.cuda.dispatcher.get_current_device = lambda: device
    geometry, window = (types.UniTuple(types.int64, count) for count in (7, 8))
    indices, taps = array(types.int64), array(types.uint8)
    sums, flag, width = array(types.float64, 3), types.boolean, types.int64
    for name, kind in KINDS.items():
        is_half, of = name.endswith("float16"), array(kind)
        is_floating = is_half or isinstance(kind, types.Float)
        least = types.float64 if is_floating else types.int64
        calls = [
            (max_pool2d_cuda._forward, (of, of, places, types.int64, least, window))
            for places in (indices, taps, of)
        ]
        if is_floating:
            calls += [
                (conv2d_cuda._forward, (of, of, array(kind, 1), types.boolean, of, geometry)),
                (conv2d_cuda._input_grad, (of, of, array(kind, 1), types.boolean, of, geometry)),
                (conv2d_cuda._weight_grad, (of, of, of, geometry)),
                (max_pool2d_cuda._scatter, (of, indices, flag, width, window, sums)),
                (max_pool2d_cuda._scatter, (of, taps, flag, width, window, sums)),
                (max_pool2d_cuda._round, (sums, of)),
            ]
        for kernel, signature in calls:
            ptx, _ = cuda.compile_ptx(kernel(name).py_func, signature, cc=CAPABILITY)
            assert ".entry" in ptx, (name, kernel)
    print("all kernels compiled")


main()
