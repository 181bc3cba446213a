"""Law: every algorithm of conv2d gives conv2d's result; which one serves can be asked, forced."""

import native
import numpy as np
import pytest
import torch

import fastconv
from fastconv.testing import assert_close


@pytest.fixture
def core():
    core = native.core()
    yield core
    core.force_algorithm("auto")
    core.allow_winograd(True)


def tensors(layout, shape=(2, 19, 11, 23), K=37, dtype=torch.float32):
    torch.manual_seed(0)
    image = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(K, shape[1], 3, 3).to(dtype).contiguous(memory_format=layout)
    return image, weight, torch.randn(K).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["auto", "channels", "pixels", "shifted", "winograd", "grouped"])
def test_every_algorithm_agrees_with_the_sum(core, name, layout, dtype):
    core.force_algorithm(name)
    for isa in core.available_isas():
        before = core.isa()
        core.set_isa(isa)
        try:
            for padding in (0, 1, 2):
                image, weight, bias = tensors(layout, dtype=dtype)
                truth = torch.conv2d(image.double(), weight.double(), bias.double(), 1, padding)
                output = fastconv.functional.conv2d(image, weight, bias, 1, padding)
                length = 3 * weight[0].numel() + 1
                assert_close(output, truth, reduction_length=length, context=f"{name}, {isa}")
                grad = torch.randn_like(truth).to(dtype)
                truth = torch.nn.grad.conv2d_input(
                    image.shape, weight.double(), grad.double(), padding=padding
                )
                output = torch.ops.fastconv.conv2d_input_grad(grad, weight, image.shape, 1, padding)
                length = 3 * weight[:, 0].numel()
                assert_close(output, truth, reduction_length=length, context=f"{name}, {isa}")
        finally:
            core.set_isa(before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3e38])
def test_winograd_keeps_what_is_not_finite_in_its_place(core, value, layout):
    """Its transforms would spread one infinity over a tile, and overflow before the sums do."""
    core.force_algorithm("winograd")
    image, weight, bias = tensors(layout)
    image[0, 3, 5, 6] = value
    weight = weight.abs().clamp(0.1, 1)
    expected = torch.conv2d(image.double(), weight.double(), bias.double(), 1, 1).float()
    output = fastconv.functional.conv2d(image, weight, bias, 1, 1)
    assert torch.equal(output.isfinite(), expected.isfinite())
    assert torch.equal(output.isnan(), expected.isnan())
    whole = expected.isfinite()
    torch.testing.assert_close(output[whole], expected[whole], rtol=1e-4, atol=1e-3)


def test_winograd_is_as_exact_as_promised(core):
    """Relative L2 error against float64, on normal data with He-scaled weights."""
    torch.manual_seed(0)
    for C in (8, 64, 512, 1024):
        image = torch.randn(1, C, 16, 16)
        weight = torch.randn(16, C, 3, 3) * (2 / (9 * C)) ** 0.5
        truth = torch.conv2d(image.double(), weight.double(), padding=1)
        for name, bound in (("winograd", 3e-6), ("channels", 1e-6), ("pixels", 1e-6)):
            layout = torch.channels_last if name == "channels" else torch.contiguous_format
            core.force_algorithm(name)
            output = fastconv.functional.conv2d(
                image.contiguous(memory_format=layout), weight, padding=1
            )
            assert (output - truth).norm() / truth.norm() <= bound, (name, C)


def test_winograd_is_not_used_when_it_is_not_allowed(core):
    image, weight, bias = tensors(torch.contiguous_format, (1, 64, 56, 56), 64)
    asked = image, weight, bias, 1, 1
    assert fastconv.explain(*asked).algorithm == "winograd"
    fastconv.allow_winograd(False)
    explained = fastconv.explain(*asked)
    assert explained.algorithm != "winograd"
    assert "not allowed" in explained.reason
    direct = fastconv.functional.conv2d(*asked)
    fastconv.allow_winograd()
    assert not torch.equal(direct, fastconv.functional.conv2d(*asked))
    with pytest.raises(TypeError, match="allow_winograd: expected a bool, got int"):
        fastconv.allow_winograd(0)


def test_explain_tells_what_runs(core):
    def algorithm(image, weight, **options):
        explained = fastconv.explain(image, weight, **options)
        assert explained.reason
        assert explained.direct_cost > 0
        return explained.algorithm

    zeros = torch.zeros
    assert algorithm(zeros(1, 8, 9, 9), zeros(8, 1, 3, 3), groups=8) == "depthwise"
    assert algorithm(zeros(1, 8, 9, 9), zeros(8, 2, 3, 3), groups=4) == "grouped"
    nhwc = zeros(1, 64, 14, 14).contiguous(memory_format=torch.channels_last)
    assert algorithm(nhwc, zeros(64, 64, 1, 1)) == "channels"
    assert algorithm(zeros(1, 64, 14, 14), zeros(64, 64, 1, 1)) == "pixels"
    assert algorithm(np.zeros((64, 56, 56), "f4"), np.zeros((64, 64, 3, 3), "f4")) == "winograd"
    assert fastconv.explain(zeros(0, 8, 9, 9), zeros(8, 8, 3, 3)).algorithm == "none"
    with pytest.raises(RuntimeError, match="expected input with 8 channels"):
        fastconv.explain(zeros(1, 7, 9, 9), zeros(8, 8, 3, 3))
    core.force_algorithm("pixels")
    explained = fastconv.explain(nhwc, zeros(64, 64, 1, 1))
    assert (explained.algorithm, explained.reason) == ("pixels", "FASTCONV_ALGO=pixels")
    with pytest.raises(ValueError, match="expected one of auto, channels"):
        core.force_algorithm("fft")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 96, 56, 56), (3, 33, 9, 17), (1, 160, 14, 14)])
def test_the_same_bits_for_every_number_of_threads(core, shape, layout):
    image, weight, bias = tensors(layout, shape, 96)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            output = fastconv.functional.conv2d(image, weight, bias, 1, 1)
            results.append(
                (output, torch.ops.fastconv.conv2d_input_grad(output, weight, image.shape, 1, 1))
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("C", "K"), [(2, 2), (3, 3), (4, 4), (8, 8), (16, 16), (40, 40), (2, 5)])
def test_groups_give_the_same_bits_for_every_number_of_threads(layout, C, K):
    torch.manual_seed(0)
    image = torch.randn(2, 6 * C, 13, 29).contiguous(memory_format=layout)
    weight, bias = torch.randn(6 * K, C, 3, 3).contiguous(memory_format=layout), torch.randn(6 * K)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            output = fastconv.functional.conv2d(image, weight, bias, 2, 1, groups=6)
            gradients = (
                torch.ops.fastconv.conv2d_weight_grad(output, image, weight.shape, 2, 1, groups=6),
                torch.ops.fastconv.conv2d_input_grad(output, weight, image.shape, 2, 1, groups=6),
            )
            results.append((output, *gradients))
    finally:
        torch.set_num_threads(before)
    truth = torch.conv2d(image.double(), weight.double(), bias.double(), 2, 1, groups=6)
    assert_close(results[0][0], truth, reduction_length=9 * C + 1)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
