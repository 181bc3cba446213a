"""Law: the CUDA kernels of max_unpool2d obey the reference, under emulation."""

import ctypes

import cuda_emulator
import numpy as np
import pytest
from cuda_emulator.problems import (
    Strides,
    assert_same,
    born_poisoned,
    laid_out,
    numpy_dtype,
    strides_of,
)
from test_max_unpool2d import tensors

from fastconv.reference import max_unpool2d as reference


class MaxUnpool2dShape(ctypes.Structure):
    """kernels/max_unpool2d.h"""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in "NCHWPQ"),
        ("input", Strides),
        ("indices", Strides),
        ("output", Strides),
    )


@pytest.mark.skipif(cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "view"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "example", [e for e in reference.EXAMPLES if 0 not in e.input], ids=lambda e: e.name
)
def test_cuda_kernels_obey_the_reference(example, dtype, layout):
    kind = numpy_dtype(dtype)
    image, at = (tensor.reshape((1, *example.input)[-4:]) for tensor in tensors(example))
    values = image.numpy().astype(kind)
    stray = at.numpy().copy()
    stray.ravel()[0] = -1  # an index outside is left out
    small, indices = laid_out(values, kind, layout), laid_out(stray, np.dtype(np.int64), layout)
    n, c, p, q = small.shape
    h, w = example.output_size
    large = born_poisoned((n, c, h, w), kind, layout)
    shape = MaxUnpool2dShape(
        cuda_emulator.DTYPES.index(dtype),
        *(n, c, h, w, p, q),
        *map(strides_of, (small, indices, large)),
    )
    arguments = (ctypes.byref(shape), small, indices, large)
    cuda_emulator.call("emulate_max_unpool2d", *arguments, read=(small, indices), scratch=(large,))
    kept = at.numpy().copy()
    zeroed = values.copy()
    zeroed.ravel()[0] = 0
    expected = reference.max_unpool2d(zeroed, kept, (h, w))
    assert_same(large, expected)
    gradient = born_poisoned(small.shape, kind, layout)
    arguments = (ctypes.byref(shape), large, indices, gradient)
    cuda_emulator.call(
        "emulate_max_unpool2d_backward", *arguments, read=(large, indices), write=(gradient,)
    )
    taken = reference.max_unpool2d_backward(expected, kept)
    taken.ravel()[0] = 0
    assert_same(gradient, taken)
