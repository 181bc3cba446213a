"""Law: what fills up a pair, a panel or a strip of conv2d takes no part in a sum.

A zero that meets an infinity is a NaN, and what lies behind the last channel or the last pixel may
be anything: so one value that is not finite shows every product that should not be there.
"""

import native
import pytest
import torch

import fastconv
from fastconv.testing import assert_close

# channels, target channels, height and width, window, options
CASES = {
    "one channel": (1, 5, (9, 40), 3, {"padding": 1}),
    "stem": (3, 33, (12, 60), 7, {"stride": 2, "padding": 3}),
    "stem without padding": (3, 16, (8, 29), 3, {}),
    "patches": (3, 20, (8, 120), 4, {"stride": 4}),
    "dilated stem": (3, 8, (9, 40), 3, {"dilation": 2, "padding": 2}),
    "odd pointwise": (17, 35, (3, 5), 1, {}),
    "even pointwise": (18, 7, (4, 6), 1, {}),
    "odd": (19, 40, (7, 11), 3, {"padding": 1}),
    "odd, moving by two": (33, 9, (8, 13), 3, {"stride": 2}),
    "odd groups": (9, 12, (6, 18), 3, {"groups": 3, "padding": 1}),
}
VIEWS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels of more": lambda x: _among_infinities(x, 1),
    "columns of more": lambda x: _among_infinities(x, 3),
}


def _among_infinities(x, axis):
    """The same values in channels_last memory, on an axis an infinity before, two behind them."""
    shape = list(x.shape)
    shape[axis] += 3
    wide = torch.full(shape, torch.inf, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    return wide.narrow(axis, 1, x.shape[axis]).copy_(x)


@pytest.fixture(params=["auto", "channels", "pixels", "shifted"])
def algorithm(request):
    core = native.core()
    core.force_algorithm(request.param)
    isa = core.isa()
    yield request.param
    core.force_algorithm("auto")
    core.set_isa(isa)


def check(output, truth, length):
    """Where the truth is finite the result is right; elsewhere it is infinite or NaN like it."""
    expected = truth.to(output.dtype)
    assert torch.equal(output.isnan(), expected.isnan())
    assert torch.equal(output.isinf(), expected.isinf())
    assert_close(output[expected.isfinite()], truth[expected.isfinite()], reduction_length=length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES)
def test_nothing_but_the_window_is_in_a_sum(algorithm, case, view, dtype):
    C, K, size, window, options = CASES[case]
    groups = options.get("groups", 1)
    torch.manual_seed(0)
    image = VIEWS[view](torch.randn(2, C, *size).to(dtype))
    weight = torch.rand(K, C // groups, window, window).add(0.1).to(dtype)
    places = [(0, 0, 0, 0), (0, C - 1, 2, 4), (1, C // 2, size[0] - 1, size[1] - 1)]
    length = 3 * weight[0].numel()
    for isa in native.core().available_isas():
        native.core().set_isa(isa)
        spoilt = image.clone() if view in ("contiguous", "channels_last") else image
        for place in places:
            kept = spoilt[place].clone()
            spoilt[place] = torch.inf
            output = fastconv.functional.conv2d(spoilt, weight, **options)
            check(output, torch.conv2d(spoilt.double(), weight.double(), **options), length)
            spoilt[place] = kept
        # An infinite weight meets zeros where the image is padded: whether it does is left open.
        if not options.get("padding"):
            infinite = weight.clone()
            infinite[-1, -1, -1, -1] = torch.inf
            output = fastconv.functional.conv2d(image, infinite, **options)
            check(output, torch.conv2d(image.double(), infinite.double(), **options), length)
        grad = torch.randn(output.shape).to(dtype)
        grad[0, -1, 0, 0] = torch.inf
        output = torch.ops.fastconv.conv2d_input_grad(grad, weight, image.shape, **options)
        truth = torch.nn.grad.conv2d_input(image.shape, weight.double(), grad.double(), **options)
        check(output, truth, 3 * weight[:, 0].numel())
