"""Law: conv2d with a window of one tap is a matrix product on the tensor cores, bit by bit right.

Both kernels, mma.sync (any device) and wgmma with tensor copies (compute capability 9.0), under
emulation; and every case that they cannot take goes to the kernel that can.
"""

import ctypes

import cuda_emulator
import numpy as np
import pytest
from cuda_emulator.problems import Conv2dProblem, assert_same, born_poisoned, laid_out

from fastconv.reference import conv2d as conv2d_reference

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC, which is not here"
)

Case = conv2d_reference.Conv2dCase
KERNELS = {80: "conv2d_pointwise_kernel", 90: "conv2d_pointwise_sm90_kernel"}
each_capability = pytest.mark.parametrize("capability", KERNELS)
each_dtype = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def case_of(name, pixels, channels, columns, bias=True):
    return Case(name, (pixels[0], channels, *pixels[1:]), (columns, channels, 1, 1), bias=bias)


CASES = [
    case_of("one unit of everything", (1, 1, 1), 8, 8),
    case_of("less than a tile", (1, 5, 7), 32, 24),
    case_of("one past a stage", (2, 3, 5), 72, 40, bias=False),
    case_of("several rounds of the ring", (1, 4, 4), 456, 16),
    case_of("one past a tile", (1, 43, 3), 16, 72),
    case_of("two tiles down, two across", (3, 9, 7), 40, 136),
]


@each_capability
@each_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_product(case, dtype, capability):
    with cuda_emulator.capability(capability):
        Conv2dProblem(case, dtype).check_forward("NHWC", "NHWC")
    assert cuda_emulator.last_kernel() == KERNELS[capability]


@each_capability
@each_dtype
def test_wide_tiles(dtype, capability):
    """Enough pixels for the tiles that large problems get; a block walks over several."""
    case = case_of("wide", (1, 92, 92), 8, 136 if capability == 80 else 264)
    with cuda_emulator.capability(capability):
        Conv2dProblem(case, dtype).check_forward("NHWC", "NHWC")
    assert cuda_emulator.last_kernel() == KERNELS[capability]


def cases_of_one_tap():
    cases = [c for c in conv2d_reference.CASES if 0 not in c.input and c.weight[2:] == (1, 1)]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name.replace(" ", "-"))


@each_capability
@each_dtype
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "view"])
@cases_of_one_tap()
def test_every_case_of_one_tap(case, dtype, layout, capability):
    with cuda_emulator.capability(capability):
        Conv2dProblem(case, dtype).check_all(layout, layout)


@each_capability
def test_the_laws_of_conv2d_meet_this_kernel(capability):
    """They run on a GPU, too, where there is one."""
    case = next(c for c in conv2d_reference.CASES if "whole vectors" in c.name)
    with cuda_emulator.capability(capability):
        Conv2dProblem(case, "bfloat16").check_forward("NHWC", "NHWC")
    assert cuda_emulator.last_kernel() == KERNELS[capability]


def check_views(problem, input, weight, output):
    shape = ctypes.byref(problem.shape(input, weight, output))
    read, write = (input, weight, problem.bias), (output,)
    arguments = (shape, input, weight, problem.bias, output)
    cuda_emulator.call("emulate_conv2d", *arguments, read=read, write=write)
    assert_same(output, problem.output.astype(problem.dtype))
    return cuda_emulator.last_kernel()


def channels_of(problem, values, before, after):
    """channels_last, as channels [before, before + C) of an array with more of them."""
    n, c, h, w = values.shape
    whole = born_poisoned((n, before + c + after, h, w), problem.dtype, "NHWC")
    view = whole[:, before : before + c]
    view[...] = values.astype(problem.dtype)
    return view


@each_capability
@pytest.mark.parametrize("column_count", [24, 21])
def test_channels_of_a_larger_tensor(column_count, capability):
    """Lines of pixels may be longer than the channels, and the result's columns any number."""
    problem = Conv2dProblem(case_of("slice", (2, 4, 5), 16, column_count), "float16")
    input = channels_of(problem, problem.input, 8, 8)
    weight = laid_out(problem.weight, problem.dtype, "NHWC")
    output = channels_of(problem, np.zeros(problem.output.shape), 8, 40 - column_count)
    with cuda_emulator.capability(capability):
        assert check_views(problem, input, weight, output) == KERNELS[capability]


@each_capability
@pytest.mark.parametrize("moved", ["input", "weight", "output", "channels"])
def test_what_16_byte_copies_cannot_reach_goes_elsewhere(moved, capability):
    channels = 12 if moved == "channels" else 16
    problem = Conv2dProblem(case_of("moved", (1, 4, 5), channels, 24), "bfloat16")
    input = channels_of(problem, problem.input, *((3, 5) if moved == "input" else (0, 0)))
    weight = channels_of(problem, problem.weight, *((1, 7) if moved == "weight" else (0, 0)))
    output = channels_of(problem, np.zeros(problem.output.shape), 0, 1 if moved == "output" else 0)
    with cuda_emulator.capability(capability):
        kernel = check_views(problem, input, weight, output)
    # mma.sync writes lines of any kind
    expected = KERNELS[80] if moved == "output" else "conv2d_correlation_tiled_kernel"
    assert kernel == expected


def test_other_devices_get_the_kernel_of_every_device():
    for capability in (75, 86, 89, 100, 120):
        with cuda_emulator.capability(capability):
            Conv2dProblem(CASES[0], "float16").check_forward("NHWC", "NHWC")
        assert cuda_emulator.last_kernel() == KERNELS[80]
