"""Law: the CUDA kernels of adaptive_max_pool2d obey the reference, under emulation."""

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

from fastconv.reference import adaptive_max_pool2d as reference

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC, which is not here"
)


class AdaptiveMaxPool2dShape(ctypes.Structure):
    """kernels/adaptive_max_pool2d.h"""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in "NCHWPQ"),
        ("input", Strides),
        ("output", Strides),
        ("indices", Strides),
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "view"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "case",
    [c for c in reference.CASES if 0 not in (*c.input, *c.output_size)],
    ids=lambda case: case.name.replace(" ", "-"),
)
def test_forward(case, dtype, layout):
    random = np.random.default_rng(0)
    kind, size = numpy_dtype(dtype), (1, *case.input)[-4:]
    values = random.integers(-5, 6, size).astype(np.float64)
    values[random.random(size) < 0.02] = np.nan
    values[random.random(size) < 0.3] = -np.inf
    output_size = [
        own if n is None else n for n, own in zip(case.output_size, size[2:], strict=True)
    ]
    truth, places = reference.adaptive_max_pool2d_with_indices(values.astype(kind), output_size)
    input = laid_out(values, kind, layout)
    for with_indices in (True, False):
        output = born_poisoned(truth.shape, kind, layout)
        indices = born_poisoned(truth.shape, np.dtype(np.int64), layout) if with_indices else None
        shape = AdaptiveMaxPool2dShape(
            cuda_emulator.DTYPES.index(dtype),
            *(*size, *output_size),
            *(strides_of(input), strides_of(output)),
            strides_of(indices) if with_indices else Strides(),
        )
        arguments = (ctypes.byref(shape), input, output, indices)
        written = (output, indices) if with_indices else (output,)
        cuda_emulator.call("emulate_adaptive_max_pool2d", *arguments, read=(input,), write=written)
        assert_same(output, truth)
        if with_indices:
            assert_same(indices, places)
