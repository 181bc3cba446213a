"""Law: an accelerated model is the same model: same objects, same names, same numbers."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fastconv
from fastconv.testing import assert_close

LAYERS = {
    "Conv2d": (lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2), (2, 6, 9, 8)),
    "Conv2d, reflected": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 7, 7)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1), (2, 6, 5, 5)),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), (2, 3, 10, 9)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (2, 3, 10, 9)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((3, None)), (2, 3, 10, 9)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d((3, None)), (2, 3, 10, 9)),
    "LPPool2d": (lambda: nn.LPPool2d(2, 2), (2, 3, 10, 9)),
    "MaxUnpool2d": (lambda: nn.MaxUnpool2d(2), (2, 3, 4, 5)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(12, 3), (7, 2, 12)),
    "LSTM": (lambda: nn.LSTM(5, 7, 2, bidirectional=True), (4, 3, 5)),
    "GRU": (lambda: nn.GRU(5, 7, batch_first=True), (4, 3, 5)),
    "RNN": (lambda: nn.RNN(5, 7, nonlinearity="relu"), (4, 5)),
    "LSTMCell": (lambda: nn.LSTMCell(5, 7), (3, 5)),
    "GRUCell": (lambda: nn.GRUCell(5, 7, bias=False), (3, 5)),
    "RNNCell": (lambda: nn.RNNCell(5, 7), (5,)),
}
# What a layer takes beside its image.
OTHERS = {"MaxUnpool2d": lambda x: (torch.arange(0, 80, 4).reshape(4, 5).expand(x.shape),)}


def run(layer, x, *others):
    if isinstance(layer, nn.MultiheadAttention):
        return layer(x, x, x, need_weights=False)[0]
    result = layer(x, *others)
    return result if isinstance(result, torch.Tensor) else result[0]


class Residual(nn.Module):
    """Shares its convolution between two places."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = self.first

    def forward(self, x):
        return x + self.second(self.norm(self.first(x)).relu())


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Residual(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def images():
    torch.manual_seed(1)
    return torch.randn(4, 3, 12, 12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_swapped_and_agrees(name, training):
    make, shape = LAYERS[name]
    layer = make().train(training)
    x = torch.randn(shape)
    inputs = (x, *OTHERS.get(name, lambda x: ())(x))
    with torch.inference_mode(not training):
        expected = run(layer, *inputs)
        assert fastconv.accelerate(layer) is layer
        assert type(layer) is getattr(fastconv, name.split(",")[0])
        assert_close(run(layer, *inputs), expected.double(), reduction_length=64)
    assert layer.training is training
    fastconv.restore(layer)
    assert type(layer) is getattr(nn, name.split(",")[0])
    assert not [key for key in vars(layer) if "fastconv" in key or "frozen" in key]


def test_every_layer_of_ours_is_tried():
    assert {name.split(",")[0] for name in LAYERS} == set(fastconv.nn.__all__)


def test_parameters_names_and_hooks_are_the_same_objects():
    model, calls = network(), []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    parameters = dict(model.named_parameters())
    keys, modules, text = list(model.state_dict()), list(model.modules()), str(model)
    fastconv.accelerate(model)
    assert list(model.state_dict()) == keys
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert str(model) == text
    model(images())
    assert calls == ["hook"]
    assert model[3].first is model[3].second, "what was shared is shared"


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_a_step_of_training_is_the_same(fmt):
    steps = []
    for prepare in (lambda model: model, fastconv.accelerate):
        model = prepare(network().to(memory_format=fmt))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(images().contiguous(memory_format=fmt)).square().mean().backward()
            optimizer.step()
        steps.append([value.detach() for value in model.state_dict().values()])
    for mine, torchs in zip(*reversed(steps), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-5)


def test_eval_mode_freezes_and_follows_the_weight():
    model, x = network().eval(), images()
    with torch.inference_mode():
        expected = model(x)
        fastconv.accelerate(model)
        assert model[0].frozen_weight is not None
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        changed = {key: value * 2 for key, value in model[0].state_dict().items()}
        model[0].load_state_dict(changed)
        fresh = fastconv.restore(copy.deepcopy(model))
        torch.testing.assert_close(model(x), fresh(x), rtol=1e-4, atol=1e-5)
    model.train()
    assert model[0].frozen_weight is None


def test_twice_is_once_and_restore_undoes_it():
    model = network()
    kinds = [type(module) for module in model.modules()]
    fastconv.accelerate(fastconv.accelerate(model))
    assert [type(m) for m in model.modules()] != kinds
    assert [type(m) for m in fastconv.restore(model).modules()] == kinds
    assert [type(m) for m in fastconv.restore(model).modules()] == kinds


def test_layers_that_were_ours_stay_ours():
    model = nn.Sequential(fastconv.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    fastconv.restore(fastconv.accelerate(model))
    assert [type(m) for m in model] == [fastconv.Conv2d, nn.Conv2d]


def test_copies_and_files_of_an_accelerated_model():
    model, x = fastconv.accelerate(network().eval()), images()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.inference_mode():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            assert torch.equal(other(x), expected)
            assert type(fastconv.restore(other)[0]) is nn.Conv2d


def test_compile_of_an_accelerated_model():
    model = fastconv.accelerate(network())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), model(images()))


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def _replaced():
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: x
    return layer


LEFT_ALONE = {
    "a subclass": (lambda: Doubled(3, 4, 3), "a subclass of torch.nn.Conv2d"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "its shape is not known yet"),
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        "its parameters are computed",
    ),
    "replaced forward": (_replaced, "its forward is replaced"),
    "another layer": (lambda: nn.Conv1d(3, 4, 3), "fastconv has no such layer"),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_exotic_layers_are_left_alone_and_reported(case):
    make, why = LEFT_ALONE[case]
    model = nn.Sequential(make())
    kind = type(model[0])
    fastconv.accelerate(model)
    assert type(model[0]) is kind
    (layer,) = (layer for layer in fastconv.report(model) if layer.name == "0")
    assert not layer.swapped
    assert why in layer.why
    assert why in str(fastconv.report(model))


def test_report_of_a_network():
    report = fastconv.report(fastconv.accelerate(network()))
    assert [layer.name for layer in report.swapped] == ["0", "2", "3.first", "4"]
    assert "fastconv computes 4 of 8 layers" in str(report)
    assert all(layer.why for layer in report if not layer.swapped)


def test_a_container_that_begins_with_an_empty_one_is_no_layer():
    model = nn.Sequential(nn.Sequential(nn.Sequential(), nn.Conv2d(3, 4, 3)))
    assert [layer.name for layer in fastconv.report(model)] == ["0.0", "0.1"]


@pytest.mark.parametrize("function", ["accelerate", "restore", "report"])
def test_what_is_no_module_is_refused(function):
    with pytest.raises(TypeError, match=f"{function}: expected a torch.nn.Module, got list"):
        getattr(fastconv, function)([nn.Conv2d(3, 4, 3)])
