"""Law: a frozen module computes what it computed before, whatever becomes of its weight."""

import copy
import io

import native
import pytest
import torch

import fastconv
from fastconv.testing import assert_close

LAYERS = {
    "winograd": (16, 32, 3, {"padding": 1}),
    "pointwise": (16, 32, 1, {}),
    "strided": (16, 24, 3, {"stride": 2, "padding": 1}),
    "same": (8, 40, 3, {"padding": "same", "dilation": 2}),
    "stem": (3, 16, 7, {"stride": 2, "padding": 3}),
    "grouped": (16, 32, 3, {"groups": 4, "padding": 1}),
    "depthwise": (16, 16, 3, {"groups": 16, "padding": 1}),
    "reflected": (8, 8, 3, {"padding": 1, "padding_mode": "reflect"}),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def compiled():
    native.core()


def make(name, layout="contiguous", dtype=torch.float32):
    """A frozen layer, an input for it, and the truth as a function of the layer and the input."""
    C, K, window, options = LAYERS[name]
    torch.manual_seed(0)
    layer = fastconv.Conv2d(C, K, window, **options).to(dtype)
    layer = fastconv.freeze(layer.to(memory_format=LAYOUTS[layout]).eval())
    image = torch.randn(2, C, 13, 14, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    return layer, image


def check(layer, image):
    """The layer's result is that of torch's layer with the same weight, now, twice in a row."""
    twin = torch.nn.Conv2d.forward
    wide = copy.deepcopy(layer).double()
    fastconv.thaw(wide)
    with torch.inference_mode(), fastconv.backend("numpy"):
        truth = twin(wide, image.double())
    length = 3 * layer.weight[0].numel() + 1
    with torch.inference_mode():
        for _ in range(2):
            assert_close(layer(image), truth, reduction_length=length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_frozen_computes_the_same(name, layout, dtype):
    layer, image = make(name, layout, dtype)
    check(layer, image)
    check(layer, image[:1])
    check(layer, image[..., 2:, 3:])


def steps():
    """Everything that changes a weight."""

    def optimizer(layer):
        layer.weight.grad = torch.ones_like(layer.weight)
        torch.optim.SGD(layer.parameters(), lr=0.1).step()

    def moving_average(layer):
        layer.weight.data.mul_(0.9).add_(torch.randn_like(layer.weight.data), alpha=0.1)

    def load(layer):
        layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})

    def assign(layer):
        state = {k: torch.randn_like(v) for k, v in layer.state_dict().items()}
        layer.load_state_dict(state, assign=True)

    def set_storage(layer):
        with torch.no_grad():
            layer.weight.set_(torch.randn_like(layer.weight))

    def data(layer):
        layer.weight.data = torch.randn_like(layer.weight)

    def reused_storage(layer):
        address = layer.weight.data_ptr()
        layer.weight = torch.nn.Parameter(layer.weight.detach()[:])
        with torch.no_grad():
            layer.weight.copy_(torch.randn_like(layer.weight))
        assert layer.weight.data_ptr() == address

    def copy_in_place(layer):
        with torch.no_grad():
            layer.weight.copy_(torch.randn_like(layer.weight))

    def numpy_view(layer):
        layer.weight.detach().numpy()[:] *= 1.5

    def other_layout(layer):
        layer.to(memory_format=torch.channels_last)

    return {function.__name__: function for function in list(locals().values())}


@pytest.mark.parametrize("step", steps())
@pytest.mark.parametrize("name", ["winograd", "pointwise", "strided"])
def test_a_changed_weight_never_meets_a_stale_arrangement(name, step):
    layer, image = make(name)
    check(layer, image)
    steps()[step](layer)
    layer.eval()
    check(layer, image)


def test_other_shapes_and_layouts_of_the_same_module():
    layer, image = make("winograd")
    for height in range(3, 40):
        check(layer, torch.randn(1, 16, height, 5))
    assert len(layer.frozen_weight._by_shape) <= 64
    check(layer, image.contiguous(memory_format=torch.channels_last))


def test_training_thaws_and_freezing_asks_for_eval():
    layer, image = make("winograd")
    layer.train()
    assert layer.frozen_weight is None
    with pytest.raises(ValueError, match="freeze: expected a module in eval mode"):
        fastconv.freeze(layer)
    layer.eval()
    model = fastconv.freeze(torch.nn.Sequential(layer, torch.nn.ReLU()).eval())
    assert layer.frozen_weight is not None
    check(layer, image)
    assert fastconv.thaw(model) is model
    assert layer.frozen_weight is None


def test_copies_of_a_frozen_module_hold_no_arranged_weight():
    layer, image = make("winograd")
    check(layer, image)
    stored = io.BytesIO()
    torch.save(layer, stored)
    assert len(stored.getvalue()) < 2 * layer.weight.numel() * 4 + 8192
    stored.seek(0)
    for other in (copy.deepcopy(layer), torch.load(stored, weights_only=False)):
        assert not other.frozen_weight._by_shape
        check(other, image)


def test_gradients_flow_through_a_frozen_module():
    layer, image = make("winograd")
    image.requires_grad_()
    layer(image).sum().backward()
    twin = torch.nn.Conv2d.forward(layer, image.detach())
    assert layer.weight.grad is not None
    assert image.grad is not None
    assert twin.shape == layer(image).shape


def test_another_instruction_set_does_not_read_the_arrangement():
    core = native.core()
    layer, image = make("pointwise", "channels_last")
    before = core.isa()
    try:
        for isa in core.available_isas():
            core.set_isa(isa)
            check(layer, image)
    finally:
        core.set_isa(before)


def test_whatever_stands_in_place_of_the_arrangement_is_harmless():
    layer, image = make("winograd")
    weight = layer.weight.detach()
    expected = torch.ops.fastconv.conv2d(image, weight)
    right = torch.ops.fastconv.conv2d_prepare(image, weight)
    call = torch.ops.fastconv.conv2d_prepared
    torch.manual_seed(1)
    for other in (
        torch.empty(0, dtype=torch.uint8),
        torch.zeros(64, dtype=torch.uint8),
        torch.zeros(4096, dtype=torch.uint8),
        torch.randint(0, 256, (4096,), dtype=torch.uint8),
        right[:-1],
        right[1:],
        torch.cat([right, right]),
        torch.ops.fastconv.conv2d_prepare(image, weight.flip(0).contiguous()),
        torch.ops.fastconv.conv2d_prepare(image, weight[:16].contiguous()),
        torch.ops.fastconv.conv2d_prepare(image.double(), weight.double()),
    ):
        assert torch.equal(call(image, weight, other), expected)
    for wrong in (right.view(torch.int8), right.reshape(1, -1), torch.zeros(8192).byte()[::2]):
        with pytest.raises(RuntimeError, match="conv2d_prepared: expected prepared to be a result"):
            call(image, weight, wrong)


def test_a_frozen_grouped_layer_takes_images_of_another_layout():
    """Both arrangements of its weight are of the same size."""
    layer = fastconv.freeze(fastconv.Conv2d(64, 64, 3, groups=4, padding=1).eval())
    image = torch.randn(2, 64, 13, 20)
    for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        check(layer, image.contiguous(memory_format=layout))
