"""Law: the modules are torch's own in everything but speed."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from operations import every_case, every_operation
from operations.mistakes import exception_of

import fastconv

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def classes(operation):
    return getattr(fastconv, operation.module), getattr(torch.nn, operation.module)


def twins(operation, case, **changes):
    """fastconv's module and torch's, made from the same seed."""
    args, kwargs = operation.module_arguments(case)
    modules = []
    for cls in classes(operation):
        torch.manual_seed(11)
        modules.append(cls(*args, **kwargs | changes))
    return modules


@every_operation()
def test_class_is_a_subclass_with_the_same_constructor(operation):
    ours, torchs = classes(operation)
    assert issubclass(ours, torchs)
    assert getattr(fastconv.nn, operation.module) is ours
    assert ours.__name__ == torchs.__name__
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(torchs).parameters)
    defaults = [p.default for p in inspect.signature(ours).parameters.values()]
    assert defaults == [p.default for p in inspect.signature(torchs).parameters.values()]


@every_case("modular")
def test_same_seed_same_module(operation, case):
    ours, torchs = twins(operation, case)
    assert repr(ours) == repr(torchs)
    assert str(torch.nn.Sequential(ours)) == str(torch.nn.Sequential(torchs))
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), "the same seed gives the same weights"


@every_case("modular")
def test_same_output_as_torch(operation, case):
    ours, torchs = twins(operation, case)
    x = operation.tensors(case)["input"]
    actual = ours(x)
    expected = torchs.double()(x.double())
    operation.check_outputs(case, (actual,), (expected.detach().numpy(),), "module")
    assert actual.stride() == expected.stride()


@every_case("plain")
def test_state_dict_goes_both_ways(operation, case):
    ours, torchs = twins(operation, case)
    x = operation.tensors(case)["input"]
    for parameter in torchs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(torchs.state_dict())
    operation.check_outputs(
        case,
        (ours(x),),
        (copy.deepcopy(torchs).double()(x.double()).detach().numpy(),),
        "loaded from torch",
    )
    for parameter in ours.parameters():
        torch.nn.init.uniform_(parameter)
    assert torchs.load_state_dict(ours.state_dict()).missing_keys == []
    for name, value in ours.state_dict().items():
        assert torch.equal(torchs.state_dict()[name], value)


@pytest.mark.parametrize("mode", PADDING_MODES)
@every_case("modular")
def test_padding_modes(operation, case, mode):
    if "padding_mode" not in inspect.signature(classes(operation)[1]).parameters:
        with pytest.raises(TypeError):
            twins(operation, case, padding_mode=mode)
        return
    args, kwargs = operation.module_arguments(case)
    refused = [
        type(exception_of(cls, *args, **kwargs, padding_mode=mode)) for cls in classes(operation)
    ]
    assert refused[0] is refused[1]
    if refused[0] is not type(None):
        return
    ours, torchs = twins(operation, case, padding_mode=mode)
    assert repr(ours) == repr(torchs)
    x = operation.tensors(case)["input"]
    try:
        expected = torchs.double()(x.double())
    except Exception as error:
        with pytest.raises(type(error)):
            ours(x)
        return
    operation.check_outputs(case, (ours(x),), (expected.detach().numpy(),), mode)


def test_unknown_padding_mode_raises_as_in_torch():
    for cls in (fastconv.Conv2d, torch.nn.Conv2d):
        with pytest.raises(ValueError, match="padding_mode"):
            cls(1, 1, 1, padding_mode="mirror")


@pytest.mark.parametrize("size", [(17, 15), (18, 15), (2, 3, 18, 16), (17, 14), (19, 15), (17,)])
@pytest.mark.parametrize("unbatched", [False, True])
def test_output_size_chooses_the_output_padding(size, unbatched):
    results = []
    for cls in (fastconv.ConvTranspose2d, torch.nn.ConvTranspose2d):
        torch.manual_seed(5)
        layer, image = cls(4, 3, 3, stride=2, padding=1), torch.randn(2, 4, 9, 8)
        try:
            results.append(layer(image[0] if unbatched else image, output_size=size))
        except ValueError as error:
            results.append(str(error))
    ours, torchs = results
    if isinstance(torchs, str):
        assert ours == torchs
    else:
        torch.testing.assert_close(ours, torchs)


@every_case("plain")
def test_copies(operation, case):
    ours, _ = twins(operation, case)
    x = operation.tensors(case)["input"]
    expected = ours(x)
    stored = io.BytesIO()
    torch.save(ours, stored)
    stored.seek(0)
    for clone in (
        copy.deepcopy(ours),
        copy.copy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(stored, weights_only=False),
    ):
        assert type(clone) is type(ours)
        assert torch.equal(clone(x), expected)


@every_case("plain")
def test_hooks(operation, case):
    ours, _ = twins(operation, case)
    x = operation.tensors(case)["input"].requires_grad_()
    seen = []
    ours.register_forward_pre_hook(lambda module, args: seen.append("before"))
    ours.register_forward_hook(lambda module, args, output: seen.append("after") or output * 2)
    ours.register_full_backward_hook(
        lambda module, grad_input, grad_output: seen.append("backward")
    )
    doubled = ours(x)
    doubled.sum().backward()
    assert seen == ["before", "after", "backward"]
    plain, _ = twins(operation, case)
    assert torch.equal(doubled, plain(x) * 2)


@every_case("plain")
def test_moves_like_a_module(operation, case):
    ours, _ = twins(operation, case)
    x = operation.tensors(case)["input"]
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert ours.to(dtype)(x.to(dtype)).dtype == dtype
    meta = copy.deepcopy(ours).to("meta")
    assert meta(x.to(torch.float16).to("meta")).shape == ours(x.to(torch.float16)).shape
    last = ours.float().to(memory_format=torch.channels_last)
    output = last(x.contiguous(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)


@every_case("plain")
def test_training_step_moves_weights_as_torch_does(operation, case):
    twins_after = []
    for module in twins(operation, case):
        module = module.double()
        x = operation.tensors(case, torch.float64, requires_grad=("input",))["input"]
        optimizer = torch.optim.SGD([x, *module.parameters()], lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
        twins_after.append([x, *module.parameters()])
    for ours, torchs in zip(*twins_after, strict=True):
        torch.testing.assert_close(ours, torchs)


@every_case("plain")
def test_in_a_compiled_network(operation, case):
    ours, _ = twins(operation, case)
    network = torch.nn.Sequential(ours, torch.nn.ReLU(), torch.nn.Flatten())
    x = operation.tensors(case)["input"]
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), network(x))


@every_case("plain")
def test_weight_norm_and_pruning_reach_the_weight(operation, case):
    ours, torchs = twins(operation, case)
    if not list(ours.parameters()):
        pytest.skip("a module without weights")
    x = operation.tensors(case)["input"]
    for module in (ours, torchs):
        torch.nn.utils.parametrizations.weight_norm(module)
        with torch.no_grad():
            module.parametrizations.weight.original0.mul_(3)
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-4, atol=1e-5)
