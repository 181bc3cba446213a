"""Law: conv2d_fused is conv2d, its scale, bias, residual and activation, rounded once."""

import native
import numpy as np
import pytest
import torch

import fastconv
from fastconv.reference.conv2d_fused import ACTIVATIONS
from fastconv.testing import assert_close, make_input

NAMES = tuple(ACTIVATIONS)
LAYERS = {  # channels, size of the result's channels, window, geometry; an algorithm each
    "winograd": (16, 37, 3, (1, 1, 1, 1)),
    "pointwise": (19, 40, 1, (1, 0, 1, 1)),
    "strided": (16, 33, 3, (2, 1, 1, 1)),
    "stem": (3, 16, 7, (2, 3, 1, 1)),
    "dilated": (5, 9, 3, (1, 2, 2, 1)),
    "deep": (520, 35, 1, (1, 0, 1, 1)),
    "grouped": (24, 48, 3, (1, 1, 1, 6)),
    "wide groups": (64, 80, 3, (1, 1, 1, 2)),
    "many groups": (64, 64, 3, (1, 1, 1, 16)),
    "depthwise": (35, 35, 3, (1, 1, 1, 35)),
    "depthwise strided": (18, 18, 5, (2, 2, 1, 18)),
    "multiplied": (6, 18, 3, (1, 1, 1, 6)),
}
LAYOUTS = ("contiguous", "channels_last")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def make(name, dtype=torch.float32, layout="contiguous", shape=(2, 13, 18)):
    """Input, weight, bias, scale, residual and geometry of a layer; the scale is never 1."""
    C, K, window, geometry = LAYERS[name]
    depth = C // geometry[-1]
    N, H, W = shape
    weight = make_input((K, depth, window, window), "float64", seed=1) / (depth * window**2) ** 0.5
    image = make_input((N, C, H, W), dtype, layout)
    output = torch.conv2d(image.double(), weight, None, *geometry)
    residual = make_input(tuple(output.shape), dtype, layout, seed=4)
    bias, scale = make_input((K,), dtype, seed=2), make_input((K,), dtype, seed=3) + 2
    return image, weight.to(dtype), bias, scale, residual, geometry


def truth(image, weight, bias, scale, residual, activation, geometry):
    sums = torch.conv2d(image.double(), weight.double(), None, *geometry)
    if scale is not None:
        sums = sums * scale.double()[:, None, None]
    if bias is not None:
        sums = sums + bias.double()[:, None, None]
    if residual is not None:
        sums = sums + residual.double()
    return sums if activation == "none" else getattr(torch.nn.functional, activation)(sums)


def check(name, activation, tensors, geometry, prepared=None):
    output = torch.ops.fastconv.conv2d_fused(*tensors, prepared, NAMES.index(activation), *geometry)
    image, weight, *_ = tensors
    length = 3 * weight[0].numel() + 4
    expected = truth(*tensors, activation, geometry)
    assert output.dtype == image.dtype
    plain = torch.ops.fastconv.conv2d(image, weight, None, *geometry)
    assert output.stride() == plain.stride()
    assert_close(output, expected, reduction_length=length, context=f"{name}, {activation}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_activation(name, activation, layout):
    *tensors, geometry = make(name, layout=layout)
    check(name, activation, tensors, geometry)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_dtype_on_every_instruction_set(name, dtype, layout):
    core = native.core()
    *tensors, geometry = make(name, dtype, layout)
    before = core.isa()
    try:
        for isa in core.available_isas():
            core.set_isa(isa)
            check(f"{name} {isa}", "silu", tensors, geometry)
            check(f"{name} {isa}", "relu6", tensors, geometry)
    finally:
        core.set_isa(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_part_may_be_absent(name, layout):
    image, weight, bias, scale, residual, geometry = make(name, layout=layout)
    for given in range(8):
        parts = [part if given >> i & 1 else None for i, part in enumerate((bias, scale, residual))]
        check(name, "relu", [image, weight, *parts], geometry)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_one_pixel_and_long_rows(name, layout):
    *tensors, geometry = make(name, layout=layout, shape=(1, 7, 7))
    check(name, "hardswish", tensors, geometry)
    *tensors, geometry = make(name, layout=layout, shape=(3, 9, 203))
    check(name, "gelu", tensors, geometry)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_with_an_arranged_weight(name, layout):
    native.core()
    *tensors, geometry = make(name, layout=layout)
    prepared = torch.ops.fastconv.conv2d_prepare(*tensors[:2], *geometry)
    check(name, "relu", tensors, geometry, prepared)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algorithm", ["channels", "pixels", "shifted", "winograd"])
def test_every_algorithm(algorithm, layout):
    core = native.core()
    *tensors, geometry = make("winograd", layout=layout)
    core.force_algorithm(algorithm)
    try:
        check(algorithm, "relu", tensors, geometry)
    finally:
        core.force_algorithm("auto")


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3e38, -1e-40])
def test_values_at_the_end_of_the_range(value, activation):
    image = torch.zeros(1, 4, 3, 5)
    image[0, 1, 1] = value
    weight = torch.eye(4)[:, :, None, None]
    output = torch.ops.fastconv.conv2d_fused(
        image, weight, None, None, None, None, NAMES.index(activation)
    )
    expected = truth(image, weight, None, None, None, activation, ())
    torch.testing.assert_close(output, expected.float(), equal_nan=True)


@pytest.mark.parametrize("backend", native.backends())
@pytest.mark.parametrize("activation", NAMES)
def test_every_backend(activation, backend):
    *tensors, geometry = make("strided")
    with fastconv.backend(backend):
        check(f"strided, {backend}", activation, tensors, geometry)


def test_numpy_arrays():
    core = native.core()
    *tensors, geometry = make("grouped")
    arrays = [tensor.numpy() for tensor in tensors]
    output = core.conv2d_fused(*arrays, None, NAMES.index("silu"), *geometry)
    assert isinstance(output, np.ndarray)
    length = 3 * tensors[1][0].numel() + 4
    assert_close(output, truth(*tensors, "silu", geometry), reduction_length=length)


def test_opcheck_and_compile():
    *tensors, geometry = make("strided", layout="channels_last")
    op = torch.ops.fastconv.conv2d_fused
    torch.library.opcheck(op, (*tensors, None, 1, *geometry))
    compiled = torch.compile(lambda *a: op(*a, None, 1, *geometry), fullgraph=True, backend="eager")
    assert torch.equal(compiled(*tensors), op(*tensors, None, 1, *geometry))


def test_the_thread_count_changes_no_bit():
    *tensors, geometry = make("strided")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.ops.fastconv.conv2d_fused(*tensors, None, 4, *geometry))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_mistakes():
    image, weight, bias, scale, residual, _ = make("pointwise")
    op = torch.ops.fastconv.conv2d_fused
    for arguments, law in (
        ((image, weight, bias[1:]), "bias"),
        ((image, weight, bias, scale[1:]), "scale"),
        ((image, weight, bias, scale.double()), "scale"),
        ((image, weight, bias, scale, residual[:, 1:]), "residual"),
        ((image, weight, bias, scale, residual.bfloat16()), "residual"),
        ((image, weight, bias, scale, residual[0]), "residual"),
        (
            (image, weight, bias, scale, residual.contiguous(memory_format=torch.channels_last)),
            "expected residual laid out as the output",
        ),
        ((image, weight, bias, scale, residual.expand_as(residual)[:1].expand_as(residual)),
         "expected residual laid out as the output"),
        ((image, weight, bias, scale, residual, None, 6), "activation in"),
        ((image, weight, bias, scale, residual, None, -1), "activation in"),
        ((image, weight, bias, scale, residual, torch.zeros(9)), "prepared to be a result of"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=law):
            op(*arguments)


def test_a_derivative_is_refused_in_words():
    *tensors, geometry = make("pointwise")
    tensors[0].requires_grad_()
    output = torch.ops.fastconv.conv2d_fused(*tensors, None, 1, *geometry)
    with pytest.raises(RuntimeError, match="conv2d_fused: expected no derivative"):
        output.sum().backward()
