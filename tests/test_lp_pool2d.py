"""Law: lp_pool2d, which is put together from other operations, is torch's in values, gradients,
layouts and errors.
"""

import numpy as np
import pytest
import torch
from operations.mistakes import exception_of

import fastconv

# What differs from a plain call: a window, an exponent, what the input holds.
CALLS = {
    "norm of two": {"norm_type": 2, "kernel_size": 3},
    "sum of absolute values": {"norm_type": 1.0, "kernel_size": 2, "stride": 3},
    "ceil_mode cuts windows, which count whole": {
        **{"norm_type": 2.0, "kernel_size": (3, 2), "stride": (2, 3), "ceil_mode": True}
    },
    "largest": {"norm_type": float("inf"), "kernel_size": 2},
    "smallest": {"norm_type": -float("inf"), "kernel_size": 2, "stride": 1},
    "odd exponent of negative numbers": {"norm_type": 3, "kernel_size": 2},
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@each_call
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_values_and_gradients_are_those_of_torch(call, layout):
    """In float64: a root near zero makes much of the last digits of its sum."""
    x = fastconv.testing.make_input((2, 5, 9, 11), torch.float64, layout)
    results = []
    for package in (fastconv.functional, torch.nn.functional):
        leaf = x.detach().requires_grad_()
        output = package.lp_pool2d(leaf, **call)
        (gradient,) = torch.autograd.grad(output.nansum(), leaf)
        results.append((output, gradient))
    for ours, torchs in zip(*results, strict=True):
        assert ours.stride() == torchs.stride()
        torch.testing.assert_close(ours, torchs, equal_nan=True)


@each_call
def test_module_and_numpy(call):
    x = fastconv.testing.make_input((3, 6, 7), torch.float32)
    expected = torch.nn.LPPool2d(**call)(x)
    ours = fastconv.LPPool2d(**call)
    assert isinstance(ours, torch.nn.LPPool2d)
    assert repr(ours) == repr(torch.nn.LPPool2d(**call))
    torch.testing.assert_close(ours(x), expected, equal_nan=True)
    with np.errstate(invalid="ignore"):
        array = fastconv.functional.lp_pool2d(x.numpy(), **call)
    assert type(array) is np.ndarray
    torch.testing.assert_close(torch.from_numpy(array), expected, equal_nan=True)


def test_compiles_into_one_graph():
    x = fastconv.testing.make_input((1, 2, 8, 8), torch.float32)
    compiled = torch.compile(fastconv.LPPool2d(2, 2), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.nn.LPPool2d(2, 2)(x))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kernel_size": 0},
        {"kernel_size": (1, 2, 3)},
        {"kernel_size": 9},
        {"kernel_size": 2.0},
        {"stride": 0},
        {"stride": "two"},
        {"ceil_mode": 1},
        {"norm_type": "two"},
        {"input": [1.0]},
        {"input": torch.ones(2, 3)},
        {"input": torch.ones(1, 2, 0, 4)},
    ],
    ids=str,
)
def test_errors_are_those_of_torch(wrong):
    call = {"input": torch.ones(1, 2, 6, 6), "norm_type": 2, "kernel_size": 2} | wrong
    expected = exception_of(torch.nn.functional.lp_pool2d, **call)
    error = exception_of(fastconv.functional.lp_pool2d, **call)
    # An IndexError or AttributeError of torch is an accident.
    accidents = {IndexError: RuntimeError, AttributeError: TypeError}
    assert type(error) is accidents.get(type(expected), type(expected)), repr(error)
