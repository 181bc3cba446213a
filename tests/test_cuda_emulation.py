"""Law: every CUDA kernel obeys the reference, under emulation, where every access is checked.

Inputs of conv2d are small integers: every sum is exact in float32, whatever its order, and rounded
once, so that results are compared bit by bit in every dtype.
"""

import ctypes
import mmap
import re

import cuda_emulator
import numpy as np
import pytest
from cuda_emulator import EmulationError
from cuda_emulator.problems import (
    Conv2dProblem,
    ConvTranspose2dProblem,
    Strides,
    Window,
    assert_same,
    born_poisoned,
    laid_out,
    numpy_dtype,
    pair,
    strides_of,
)

from fastconv.reference import conv2d as conv2d_reference
from fastconv.reference import conv_transpose2d as conv_transpose2d_reference
from fastconv.reference import max_pool2d as max_pool2d_reference

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC, which is not here"
)

FLOATING = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
LAYOUTS = ("NCHW", "NHWC", "view")


class MaxPool2dShape(ctypes.Structure):
    """kernels/max_pool2d.h"""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("where", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in "NCHWPQ"),
        ("window", Window),
        ("input", Strides),
        ("output", Strides),
        ("indices", Strides),
    )


def cases_with_elements(module):
    cases = [case for case in module.CASES if 0 not in case.input]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name.replace(" ", "-"))


each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_floating = pytest.mark.parametrize("dtype", FLOATING)


@each_layout
@each_floating
@cases_with_elements(conv2d_reference)
def test_conv2d(case, dtype, layout):
    Conv2dProblem(case, dtype).check_all(layout, layout)


@each_layout
@each_floating
@cases_with_elements(conv_transpose2d_reference)
def test_conv_transpose2d(case, dtype, layout):
    ConvTranspose2dProblem(case, dtype).check(layout, layout)


Case = conv2d_reference.Conv2dCase
# Large enough for every tile of every dtype: 128 blocks of 128 x 64, or for weight_grad of 64 x 64.
LARGE_CASES = {
    "large tiles": Case("large tiles", (1, 4, 130, 128), (34, 4, 1, 1)),
    "medium tiles": Case("medium tiles", (2, 3, 65, 67), (17, 3, 3, 1), padding=1),
    "channels past a stage": Case("channels past a stage", (1, 136, 4, 4), (40, 136, 2, 2)),
}
LARGE_WEIGHT = Case("large weight", (1, 128, 4, 4), (520, 128, 3, 3), bias=False, padding=1)
each_plain_layout = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])


@each_plain_layout
@each_floating
@pytest.mark.parametrize("case", LARGE_CASES.values(), ids=lambda case: case.name.replace(" ", "-"))
def test_conv2d_tiles(case, dtype, layout):
    problem = Conv2dProblem(case, dtype)
    problem.check_forward(layout, "NHWC" if layout == "NCHW" else "NCHW")
    problem.check_input_grad(layout, layout)


@each_plain_layout
@each_floating
def test_conv2d_weight_grad_tiles(dtype, layout):
    Conv2dProblem(LARGE_WEIGHT, dtype).check_weight_grad(layout, layout)


PoolCase = max_pool2d_reference.MaxPool2dCase
POOL_MARGIN_CASES = (
    PoolCase("eight windows of a row in 16 bytes", (1, 2, 5, 32), 2),
    PoolCase("sixteen channels in 16 bytes", (2, 32, 7, 7), 3, stride=2, padding=1),
    PoolCase("rows of whole vectors", (1, 2, 9, 16), 3, stride=2, padding=1),
    PoolCase("more planes than one scan block", (3, 15, 20, 20), 3, stride=2, padding=1),
)


class PoolProblem:
    """One case in one dtype: an input full of ties and NaN, and the truth."""

    def __init__(self, case, dtype):
        random = np.random.default_rng(0)
        size = case.input if len(case.input) == 4 else (1, *case.input)
        self.dtype = numpy_dtype(dtype)
        values = random.integers(0 if dtype == "uint8" else -5, 6, size).astype(np.float64)
        if dtype in FLOATING:
            values[random.random(size) < 0.05] = np.nan
            values[random.random(size) < 0.3] = -np.inf
        self.input = values.astype(self.dtype)
        self.kernel = pair(case.kernel_size)
        self.stride = self.kernel if case.stride is None else pair(case.stride)
        self.padding, self.dilation = pair(case.padding), pair(case.dilation)
        arguments = (self.input, self.kernel, self.stride, self.padding, self.dilation)
        self.output, self.indices = max_pool2d_reference.max_pool2d_with_indices(
            *arguments, case.ceil_mode
        )
        _, self.taps = max_pool2d_reference.max_pool2d_with_taps(*arguments, case.ceil_mode)
        self.grad_output = random.integers(-2, 3, self.output.shape).astype(self.dtype)

    def shape(self, input, output, places, window=True):
        (n, c, h, w), (_, _, p, q) = input.shape, output.shape
        known = Window(*self.kernel, *self.stride, *self.padding, *self.dilation)
        where = "uint8" if places is not None and places.dtype == np.uint8 else "int64"
        return MaxPool2dShape(
            cuda_emulator.DTYPES.index(self.dtype.name),
            cuda_emulator.DTYPES.index(where),
            *(n, c, h, w, p, q),
            known if window else Window(),
            strides_of(input),
            strides_of(output),
            Strides() if places is None else strides_of(places),
        )

    def check_forward(self, layout, places=None):
        """Values alone, or with the places: indices or taps."""
        input = laid_out(self.input, self.dtype, layout)
        output = born_poisoned(self.output.shape, self.dtype, layout)
        written = None if places is None else born_poisoned(places.shape, places.dtype, layout)
        shape = ctypes.byref(self.shape(input, output, written))
        results = (output,) if written is None else (output, written)
        arguments = (shape, input, output, written)
        cuda_emulator.call("emulate_max_pool2d", *arguments, read=(input,), write=results)
        assert_same(output, self.output)
        if written is not None:
            assert_same(written, places)

    def check_backward(self, layout, places, window=True):
        grad_output = laid_out(self.grad_output, self.dtype, layout)
        places = laid_out(places, places.dtype, layout)
        grad_input = born_poisoned(self.input.shape, self.dtype, layout)
        shape = ctypes.byref(self.shape(grad_input, grad_output, places, window))
        arguments = (shape, grad_output, places, grad_input)
        read, write = (grad_output, places), (grad_input,)
        cuda_emulator.call("emulate_max_pool2d_backward", *arguments, read=read, write=write)
        truth = max_pool2d_reference.max_pool2d_backward(
            self.grad_output, self.indices, self.input.shape
        )
        assert_same(grad_input, truth.astype(self.dtype))


pool_cases = pytest.mark.parametrize(
    "case",
    [c for c in (*max_pool2d_reference.CASES, *POOL_MARGIN_CASES) if 0 not in c.input],
    ids=lambda case: case.name.replace(" ", "-"),
)


@each_layout
@pytest.mark.parametrize("dtype", FLOATING + INTEGERS)
@pool_cases
def test_max_pool2d(case, dtype, layout):
    problem = PoolProblem(case, dtype)
    problem.check_forward(layout)
    problem.check_forward(layout, problem.indices)
    if dtype in FLOATING:
        problem.check_forward(layout, problem.taps)


@each_layout
@each_floating
@pool_cases
def test_max_pool2d_backward(case, dtype, layout):
    problem = PoolProblem(case, dtype)
    problem.check_backward(layout, problem.indices)
    problem.check_backward(layout, problem.taps)
    problem.check_backward(layout, problem.indices, window=False)


def planted_kernels():
    """Names in the order of planted.cu: the first six are right, the others are not."""
    return [
        ("reverse", None),
        ("reverse in static shared memory", None),
        ("warp sum", None),
        ("copy", None),
        ("matrix product", None),
        ("matrix product, transposed loads", None),
        ("missing barrier", "shared memory"),
        ("missing barrier, static", "shared memory"),
        ("barrier missing after the first round", "race in shared memory"),
        ("load one past the end", "out-of-bounds read of 4 bytes, 4 bytes behind the end"),
        ("load one before the beginning", "out-of-bounds read of 4 bytes, 4 bytes before"),
        ("shared memory nobody wrote", "read of shared memory that no thread of the block wrote"),
        ("shared memory overrun", "out-of-bounds access to shared memory"),
        ("barrier that some threads miss", "divergent barrier: not all threads"),
        ("barrier at two places", "divergent barrier: threads wait at different places"),
        ("shuffle that a lane misses", "divergent collective"),
        ("misaligned vector", "not aligned to its type"),
        ("element written twice", "element written by two threads"),
        ("input written", "write to a read-only buffer"),
    ]


@pytest.mark.parametrize("number", range(len(planted_kernels())))
def test_planted_bugs_are_caught(number):
    name, message = planted_kernels()[number]
    assert cuda_emulator.library().planted_name(number).decode() == name
    assert cuda_emulator.library().planted_name(len(planted_kernels())) is None
    values = np.random.default_rng(0).integers(-3, 4, 384)
    matrices = name.startswith("matrix")
    read = (
        values.astype(np.float16).view(np.float32) if matrices else values[:64].astype(np.float32)
    )
    write = born_poisoned((1, 1, 1, 128 if matrices else 64), np.dtype(np.float32), "NCHW").ravel()
    arguments = ("emulate_planted", number, read, write)
    if message is not None:
        with pytest.raises(EmulationError, match=message) as caught:
            cuda_emulator.call(*arguments, read=(read,), write=(write,))
        kernel, _, place = (
            str(caught.value).partition(": kernel ")[2].partition(", block 0, thread ")
        )
        assert "_kernel" in kernel, "the message names the kernel"
        assert re.search(r"\(\w+\.cuh?:\d+\)$", place), "and the line where it went wrong"
        return
    cuda_emulator.call(*arguments, read=(read,), write=(write,))
    expected = {
        "reverse": read[::-1],
        "warp sum": np.repeat(read[:64].reshape(2, -1).sum(1), 32),
        "copy": read,
        "matrix product": (values[:256].reshape(16, 16) @ values[256:].reshape(16, 8)).ravel(),
    }
    assert_same(write, next(array for key, array in expected.items() if name.startswith(key)))


def test_layouts_may_differ_and_views_may_be_expanded_or_reversed():
    case = Case("views", (2, 16, 9, 8), (24, 16, 3, 3), stride=(2, 1), padding=1)
    for dtype in FLOATING:
        problem = Conv2dProblem(case, dtype)
        problem.input[:] = problem.input[:1]
        problem.weight[:] = problem.weight[:, :, :1]
        bias = problem.bias.astype(np.float64)
        truth = conv2d_reference.conv2d(problem.input, problem.weight, bias, **problem.options)
        input = laid_out(problem.input[:1, :, ::-1, ::-1], problem.dtype, "NHWC")
        input = np.broadcast_to(input[:, :, ::-1, ::-1], problem.input.shape)
        weight = laid_out(problem.weight[:, :, :1], problem.dtype, "NCHW")
        weight = np.broadcast_to(weight, problem.weight.shape)
        output = born_poisoned(truth.shape, problem.dtype, "NCHW")
        shape = ctypes.byref(problem.shape(input, weight, output))
        read, write = (input, weight, problem.bias), (output,)
        arguments = (shape, input, weight, problem.bias, output)
        cuda_emulator.call("emulate_conv2d", *arguments, read=read, write=write)
        assert_same(output, truth.astype(problem.dtype))


def test_extents_beyond_32_bits():
    """A window of one tap may have any dilation: its coordinates need 64 bits."""
    case = Case("far dilation", (2, 3, 5, 6), (4, 3, 1, 1), stride=2, dilation=2**33)
    Conv2dProblem(case, "float32").check_all("NCHW", "NCHW")
    far = PoolCase("far dilation", (2, 3, 5, 6), 1, stride=1, dilation=2**33)
    far = PoolProblem(far, "float16")
    for places in (far.indices, far.taps):
        far.check_forward("NHWC", places)
    case = Case("far dilation, grouped", (2, 4, 5, 6), (4, 1, 1, 1), dilation=2**33, groups=4)
    Conv2dProblem(case, "bfloat16").check_all("NHWC", "NCHW")


def test_offsets_beyond_32_bits():
    """Planes 2^31 elements apart, and rows 2^30 apart in one plane: pages exist when touched."""
    problem = PoolProblem(PoolCase("far", (2, 1, 4, 4), 3, stride=1, padding=1), "float16")
    for strides in ((2**31, 1, 8, 1), (8, 1, 2**30, 1)):
        bytes_needed = 2 * (
            sum(s * (n - 1) for s, n in zip(strides, (2, 1, 4, 4), strict=True)) + 1
        )
        try:
            pages = mmap.mmap(
                -1, bytes_needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
            )
        except (OSError, ValueError):
            pytest.skip("no address space for a sparse array")
        input = np.ndarray((2, 1, 4, 4), np.float16, pages, strides=[2 * s for s in strides])
        input[...] = problem.input
        output = born_poisoned(problem.output.shape, problem.dtype, "NCHW")
        indices = born_poisoned(problem.output.shape, np.dtype(np.int64), "NCHW")
        shape = ctypes.byref(problem.shape(input, output, indices))
        arguments, write = (shape, input, output, indices), (output, indices)
        cuda_emulator.call("emulate_max_pool2d", *arguments, read=(input,), write=write)
        assert_same(output, problem.output)
        assert_same(indices, problem.indices)
        grad_output = laid_out(problem.grad_output, problem.dtype, "NCHW")
        shape = ctypes.byref(problem.shape(input, grad_output, indices))
        arguments, read = (shape, grad_output, indices, input), (grad_output, indices)
        cuda_emulator.call("emulate_max_pool2d_backward", *arguments, read=read, write=(input,))
        truth = max_pool2d_reference.max_pool2d_backward(
            problem.grad_output, problem.indices, (2, 1, 4, 4)
        )
        assert_same(input, truth.astype(problem.dtype))
        del input
        pages.close()


def test_what_a_kernel_leaves_out_of_bounds_is_ignored():
    """An index outside the plane belongs to no element."""
    problem = PoolProblem(PoolCase("stray", (1, 2, 6, 6), 2), "float32")
    problem.indices[0, 0, 0] = (-1, 36, 10**12)
    inside = np.where((problem.indices >= 0) & (problem.indices < 36), problem.indices, 0)
    kept = np.where(inside == problem.indices, problem.grad_output, 0)
    grad_output = laid_out(problem.grad_output, problem.dtype, "NCHW")
    grad_input = born_poisoned(problem.input.shape, problem.dtype, "NCHW")
    truth = max_pool2d_reference.max_pool2d_backward(kept, inside, problem.input.shape)
    for window in (True, False):
        shape = ctypes.byref(problem.shape(grad_input, grad_output, problem.indices, window))
        arguments = (shape, grad_output, problem.indices, grad_input)
        read, write = (grad_output, problem.indices), (grad_input,)
        cuda_emulator.call("emulate_max_pool2d_backward", *arguments, read=read, write=write)
        assert_same(grad_input, truth)
