"""Law: the CUDA kernels of average pooling obey the reference, under emulation, where every access
is checked.

Inputs are small integers, so that sums are exact whatever their order, and here and there a NaN or
an infinity, which must not reach another window.
"""

import ctypes
import mmap

import cuda_emulator
import numpy as np
import pytest
from cuda_emulator.problems import (
    Strides,
    Window,
    assert_same,
    born_poisoned,
    laid_out,
    numpy_dtype,
    pair,
    strides_of,
)

from fastconv.reference import adaptive_avg_pool2d as adaptive_reference
from fastconv.reference import avg_pool2d as reference

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC, which is not here"
)


class AvgPool2dShape(ctypes.Structure):
    """kernels/avg_pool2d.h"""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in "NCHWPQ"),
        ("window", Window),
        ("count_include_pad", ctypes.c_bool),
        ("divisor_override", ctypes.c_int64),
        ("input", Strides),
        ("output", Strides),
    )


class AdaptiveAvgPool2dShape(ctypes.Structure):
    """kernels/adaptive_avg_pool2d.h"""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in "NCHWPQ"),
        ("input", Strides),
        ("output", Strides),
    )


Case, AdaptiveCase = reference.AvgPool2dCase, adaptive_reference.AdaptivePool2dCase
MARGIN_CASES = (
    Case("rows of whole vectors, halved", (1, 3, 5, 32), 2),
    Case("rows of whole vectors, same size", (2, 2, 4, 16), 3, stride=1, padding=1,
         count_include_pad=False),
    Case("rows of whole vectors, stem", (1, 2, 9, 32), 3, stride=2, padding=1),
    Case("sixteen channels in vectors", (2, 32, 7, 7), 3, stride=2, padding=1),
    Case("large windows of channels in vectors", (2, 48, 9, 8), (7, 8), stride=1),
    AdaptiveCase("planes of whole vectors", (2, 5, 8, 8), (1, 1)),
    AdaptiveCase("planes longer than a warp's share", (1, 3, 48, 64), (1, 1)),
    AdaptiveCase("planes longer than a warp's share, odd", (1, 2, 47, 51), (1, 1)),
    AdaptiveCase("vectors of columns under windows that share some", (1, 2, 9, 32), (4, 6)),
    AdaptiveCase("nothing to give back", (1, 16, 4, 16), (0, 3)),
)  # fmt: skip
CASES = [
    case
    for case in (*reference.CASES, *adaptive_reference.CASES, *MARGIN_CASES)
    if 0 not in case.input
]


class Problem:
    """One case in one dtype, and the truth."""

    def __init__(self, case, dtype):
        random = np.random.default_rng(0)
        self.dtype = numpy_dtype(dtype)
        size = case.input if len(case.input) == 4 else (1, *case.input)
        self.input = random.integers(-5, 6, size).astype(np.float64)
        for special, at in ((np.nan, 0), (np.inf, -1)):
            self.input.reshape(-1)[at] = special
        self.case = case
        self.is_adaptive = isinstance(case, AdaptiveCase)
        module = adaptive_reference if self.is_adaptive else reference
        self.name = "adaptive_avg_pool2d" if self.is_adaptive else "avg_pool2d"
        arguments, rest = case.kwargs, case.kwargs
        if self.is_adaptive:
            own = zip(case.output_size, size[-2:], strict=True)
            arguments = {"output_size": [n if given is None else given for given, n in own]}
            rest = {}
        with np.errstate(invalid="ignore"):
            self.output = getattr(module, self.name)(self.input, **arguments)
        self.grad_output = random.integers(-9, 10, self.output.shape).astype(np.float64)
        if self.grad_output.size:
            self.grad_output.reshape(-1)[-1] = np.nan
        self.grad_input = getattr(module, f"{self.name}_backward")(
            self.grad_output, size, False, **rest
        )

    def shape(self, input, output):
        (n, c, h, w), (_, _, p, q) = input.shape, output.shape
        extents = (cuda_emulator.DTYPES.index(self.dtype.name), n, c, h, w, p, q)
        if self.is_adaptive:
            return AdaptiveAvgPool2dShape(*extents, strides_of(input), strides_of(output))
        kernel = pair(self.case.kernel_size)
        stride = kernel if self.case.stride is None else pair(self.case.stride)
        return AvgPool2dShape(
            *extents,
            Window(*kernel, *stride, *pair(self.case.padding), 1, 1),
            self.case.count_include_pad,
            self.case.divisor_override or 0,
            strides_of(input),
            strides_of(output),
        )

    def check_forward(self, input, layout):
        output = born_poisoned(self.output.shape, self.dtype, layout)
        shape = ctypes.byref(self.shape(input, output))
        arguments, name = (shape, input, output), f"emulate_{self.name}"
        cuda_emulator.call(name, *arguments, read=(input,), write=(output,))
        assert_same(output, self.output.astype(self.dtype))

    def check_backward(self, layout, grad_input):
        grad_output = laid_out(self.grad_output, self.dtype, layout)
        shape = ctypes.byref(self.shape(grad_input, grad_output))
        arguments, name = (shape, grad_output, grad_input), f"emulate_{self.name}_backward"
        cuda_emulator.call(name, *arguments, read=(grad_output,), write=(grad_input,))
        actual, expected = (a.astype(np.float64) for a in (grad_input, self.grad_input))
        # A sum of quotients, each rounded: no more than a few units of the accumulator's type.
        unit = 2.0**-50 if self.dtype == np.float64 else 2.0**-21
        rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(self.dtype.name, 0)
        np.testing.assert_allclose(actual, expected, rtol=rounding, atol=40 * unit)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "view"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_averages(case, dtype, layout):
    problem = Problem(case, dtype)
    if problem.output.size:
        problem.check_forward(laid_out(problem.input, problem.dtype, layout), layout)
    grad_input = born_poisoned(problem.input.shape, problem.dtype, layout)
    problem.check_backward(layout, grad_input)


@pytest.mark.parametrize("case", [Case("far", (2, 1, 4, 4), 3, stride=1, padding=1),
                                  AdaptiveCase("far, adaptive", (2, 1, 4, 4), (3, 2))],
                         ids=lambda case: case.name)  # fmt: skip
def test_offsets_beyond_32_bits(case):
    """Planes 2^31 elements apart, and rows 2^30 apart in one plane: pages exist when touched."""
    problem = Problem(case, "float16")
    for strides in ((2**31, 1, 8, 1), (8, 1, 2**30, 1)):
        last = sum(s * (n - 1) for s, n in zip(strides, case.input, strict=True))
        try:
            pages = mmap.mmap(
                -1, 2 * (last + 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
            )
        except (OSError, ValueError):
            pytest.skip("no address space for a sparse array")
        far = np.ndarray(case.input, np.float16, pages, strides=[2 * s for s in strides])
        far[...] = problem.input
        problem.check_forward(far, "NCHW")
        problem.check_backward("NCHW", far)
        del far
        pages.close()
