"""Law: where windows are few and the weight is large, conv2d's gradient by the input is right,
whatever the window, and is the same for every number of threads.
"""

import native
import pytest
import torch

import fastconv
from fastconv.testing import assert_close

# images, channels, target channels, height and width, window, options
CASES = {
    "strided": (1, 96, 160, (14, 14), (3, 3), {"stride": 2, "padding": 1}),
    "one window per pixel": (1, 600, 900, (7, 7), (1, 1), {}),
    "one window per pixel of two images": (2, 580, 910, (5, 6), (1, 1), {}),
    "pixels without windows": (1, 640, 820, (13, 14), (1, 1), {"stride": 2}),
    "gaps between windows": (2, 130, 120, (11, 13), (3, 3), {"stride": 4, "padding": 1}),
    "columns that overlap": (1, 70, 80, (7, 9), (5, 5), {"padding": 2}),
    "dilated rows": (1, 72, 210, (13, 12), (3, 3), {"dilation": (3, 1), "padding": (3, 1)}),
    "padding wider than the image": (3, 80, 200, (2, 1), (3, 3), {"padding": (2, 3)}),
    "tall": (1, 201, 140, (12, 5), (5, 1), {"stride": (2, 1)}),
    "wide, longer than a register": (1, 64, 128, (4, 40), (1, 19), {"padding": (0, 9)}),
    "groups": (1, 180, 260, (9, 10), (3, 3), {"groups": 2, "stride": (1, 2)}),
}


@pytest.fixture
def core():
    core = native.core()
    isa, threads = core.isa(), torch.get_num_threads()
    yield core
    core.set_isa(isa)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_few_windows(core, case, dtype):
    N, C, K, size, window, options = CASES[case]
    groups = options.get("groups", 1)
    torch.manual_seed(0)
    weight = torch.randn(K, C // groups, *window, dtype=dtype)
    assert weight.numel() >= 2 ** (17 if window != (1, 1) else 19), "else another way is taken"
    image = torch.empty(N, C, *size, dtype=dtype)
    output = torch.conv2d(image.to("meta"), weight.to("meta"), **options)
    assert output[:, 0].numel() <= (200 if window != (1, 1) else 64)
    grad = torch.randn(output.shape).to(dtype)
    exact = torch.nn.grad.conv2d_input(image.shape, weight.double(), grad.double(), **options)
    length = K // groups * window[0] * window[1]
    for isa in core.available_isas():
        core.set_isa(isa)
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(
                torch.ops.fastconv.conv2d_input_grad(grad, weight, image.shape, **options)
            )
        assert_close(answers[0], exact, reduction_length=length, context=isa)
        assert all(torch.equal(answers[0], other) for other in answers[1:])


def test_nothing_but_the_window_is_added(core):
    """An infinite gradient reaches the pixels under its window, and no other."""
    weight = torch.rand(128, 128, 3, 3) + 0.1
    grad = torch.randn(1, 128, 5, 5)
    grad[0, 7, 2, 3] = torch.inf
    options = {"stride": 2, "padding": 1}
    for isa in core.available_isas():
        core.set_isa(isa)
        made = torch.ops.fastconv.conv2d_input_grad(grad, weight, (1, 128, 9, 9), **options)
        hit = torch.zeros(9, 9, dtype=torch.bool)
        hit[3:6, 5:8] = True
        assert torch.equal(made[0].isinf().all(0), hit)
        assert torch.equal(made[0].isfinite().all(0), ~hit)


def test_bias_of_a_transposed_convolution(core):
    image, weight, bias = torch.randn(1, 256, 7, 6), torch.randn(256, 96, 4, 4), torch.randn(96)
    options = {"stride": 2, "padding": 1}
    wide = (tensor.double() for tensor in (image, weight, bias))
    truth = torch.conv_transpose2d(*wide, **options)
    for isa in core.available_isas():
        core.set_isa(isa)
        made = fastconv.functional.conv_transpose2d(image, weight, bias, **options)
        assert_close(made, truth, reduction_length=256 * 4, context=isa)
