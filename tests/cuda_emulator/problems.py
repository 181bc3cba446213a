"""Arrays as kernels meet them, and conv2d's laws as one emulated kernel must obey them.

Inputs are small integers: every sum is exact in float32, whatever its order, and rounded once, so
that results are compared bit by bit in every dtype.
"""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np

import cuda_emulator
from fastconv.reference import conv2d as conv2d_reference
from fastconv.reference import conv_transpose2d as conv_transpose2d_reference

Strides = ctypes.c_int64 * 4


class Window(ctypes.Structure):
    """kernels/window.h"""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("R", "S", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    )


class Conv2dShape(ctypes.Structure):
    """kernels/conv2d.h"""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in "NCHWKPQG"),
        ("window", Window),
        ("input", Strides),
        ("weight", Strides),
        ("output", Strides),
        ("bias_stride", ctypes.c_int64),
    )


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def strides_of(array):
    return Strides(*(stride // array.itemsize for stride in array.strides))


def born_poisoned(shape, dtype, layout):
    """A 4-d array of 0xFF bytes, aligned to 16 bytes unless a view into a larger one."""
    n, c, h, w = shape
    stored = {
        "NCHW": (n, c, h, w),
        "NHWC": (n, h, w, c),
        "view": (w + 1, n, 2 * h + 1, c + 1),
    }[layout]
    room = np.full(int(np.prod(stored)) * dtype.itemsize + 16, 0xFF, np.uint8)
    start = -room.ctypes.data % 16
    array = room[start : start + room.size - 16].view(dtype).reshape(stored)
    if layout == "NHWC":
        return array.transpose(0, 3, 1, 2)
    return array[1:, :, 1::2, 1:].transpose(1, 3, 2, 0) if layout == "view" else array


def laid_out(values, dtype, layout):
    array = born_poisoned(values.shape, dtype, layout)
    array[...] = values.astype(dtype)
    return array


def assert_same(actual, expected):
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    wrong = np.argwhere(~same)
    assert not len(wrong), (
        f"{len(wrong)} of {same.size} elements, first at {wrong[0]}: "
        f"{actual[tuple(wrong[0])]}, expected {expected[tuple(wrong[0])]}"
    )


class Conv2dProblem:
    """One case in one dtype: integer tensors, options, and the truth."""

    def __init__(self, case, dtype, seed=0):
        random = np.random.default_rng(seed)
        input_size = case.input if len(case.input) == 4 else (1, *case.input)
        self.dtype = numpy_dtype(dtype)
        self.options = {
            "stride": pair(case.stride),
            "padding": pair(case.padding),
            "dilation": pair(case.dilation),
            "groups": case.groups,
        }
        self.input = random.integers(-2, 3, input_size).astype(np.float64)
        self.weight = random.integers(-2, 3, case.weight).astype(np.float64)
        self.bias = None
        if case.bias:  # a view: every third element
            self.bias = random.integers(-9, 10, 3 * case.weight[0]).astype(self.dtype)[1::3]
        bias = None if self.bias is None else self.bias.astype(np.float64)
        self.output = conv2d_reference.conv2d(self.input, self.weight, bias, **self.options)
        self.grad_output = random.integers(-2, 3, self.output.shape).astype(np.float64)

    def shape(self, input, weight, output):
        stride, dilation = self.options["stride"], self.options["dilation"]
        padding = self.options["padding"]
        top, left = (padding[0], padding[2]) if len(padding) == 4 else padding
        (n, c, h, w), (k, _, r, s), (_, _, p, q) = input.shape, weight.shape, output.shape
        return Conv2dShape(
            cuda_emulator.DTYPES.index(self.dtype.name),
            *(n, c, h, w, k, p, q, self.options["groups"]),
            Window(r, s, *stride, top, left, *dilation),
            strides_of(input),
            strides_of(weight),
            strides_of(output),
            3,
        )

    def check_forward(self, layout, weight_layout):
        input = laid_out(self.input, self.dtype, layout)
        weight = laid_out(self.weight, self.dtype, weight_layout)
        output = born_poisoned(self.output.shape, self.dtype, layout)
        shape = ctypes.byref(self.shape(input, weight, output))
        read = (input, weight) if self.bias is None else (input, weight, self.bias)
        cuda_emulator.call(
            "emulate_conv2d", shape, input, weight, self.bias, output, read=read, write=(output,)
        )
        assert_same(output, self.output.astype(self.dtype))

    def check_input_grad(self, layout, weight_layout):
        grad_output = laid_out(self.grad_output, self.dtype, layout)
        weight = laid_out(self.weight, self.dtype, weight_layout)
        grad_input = born_poisoned(self.input.shape, self.dtype, layout)
        shape = ctypes.byref(self.shape(grad_input, weight, grad_output))
        arguments = (shape, grad_output, weight, None, grad_input)
        read, write = (grad_output, weight), (grad_input,)
        cuda_emulator.call("emulate_conv2d_input_grad", *arguments, read=read, write=write)
        truth = conv2d_reference.conv2d_input_grad(
            self.grad_output, self.weight, self.input.shape, **self.options
        )
        assert_same(grad_input, truth.astype(self.dtype))

    def check_weight_grad(self, layout, weight_layout):
        grad_output = laid_out(self.grad_output, self.dtype, layout)
        input = laid_out(self.input, self.dtype, layout)
        grad_weight = born_poisoned(self.weight.shape, self.dtype, weight_layout)
        shape = ctypes.byref(self.shape(input, grad_weight, grad_output))
        arguments = (shape, grad_output, input, grad_weight)
        read, write = (grad_output, input), (grad_weight,)
        cuda_emulator.call("emulate_conv2d_weight_grad", *arguments, read=read, write=write)
        truth = conv2d_reference.conv2d_weight_grad(
            self.grad_output, self.input, self.weight.shape, **self.options
        )
        assert_same(grad_weight, truth.astype(self.dtype))

    def check_all(self, layout, weight_layout):
        self.check_forward(layout, weight_layout)
        self.check_input_grad(layout, weight_layout)
        self.check_weight_grad(layout, weight_layout)


class ConvTranspose2dProblem:
    """The same for conv_transpose2d, which is conv2d's gradient by the input with a bias."""

    def __init__(self, case, dtype, seed=0):
        random = np.random.default_rng(seed)
        input_size = case.input if len(case.input) == 4 else (1, *case.input)
        self.dtype, self.case = numpy_dtype(dtype), case
        self.input = random.integers(-2, 3, input_size).astype(np.float64)
        self.weight = random.integers(-2, 3, case.weight).astype(np.float64)
        self.bias = None
        if case.bias:  # a view: every third element
            count = 3 * case.weight[1] * case.groups
            self.bias = random.integers(-9, 10, count).astype(self.dtype)[1::3]
        bias = None if self.bias is None else self.bias.astype(np.float64)
        self.output = conv_transpose2d_reference.conv_transpose2d(
            self.input, self.weight, bias, **case.kwargs
        )

    def shape(self, input, weight, output):
        """That of the convolution whose input is the output here."""
        (n, k, p, q), (_, _, r, s), (_, c, h, w) = input.shape, weight.shape, output.shape
        window = (*pair(self.case.stride), *pair(self.case.padding), *pair(self.case.dilation))
        return Conv2dShape(
            cuda_emulator.DTYPES.index(self.dtype.name),
            *(n, c, h, w, k, p, q, self.case.groups),
            Window(r, s, *window),
            strides_of(output),
            strides_of(weight),
            strides_of(input),
            3,
        )

    def check(self, layout, weight_layout):
        input = laid_out(self.input, self.dtype, layout)
        weight = laid_out(self.weight, self.dtype, weight_layout)
        output = born_poisoned(self.output.shape, self.dtype, layout)
        shape = ctypes.byref(self.shape(input, weight, output))
        read = (input, weight) if self.bias is None else (input, weight, self.bias)
        arguments = (shape, input, weight, self.bias, output)
        cuda_emulator.call("emulate_conv2d_input_grad", *arguments, read=read, write=(output,))
        assert_same(output, self.output.astype(self.dtype))
