"""Law: fastconv.MultiheadAttention is torch.nn's in everything but speed."""

import copy
import inspect
import itertools
import math

import pytest
import torch
from operations.mistakes import exception_of
from torch.testing._internal.common_modules import module_db

import fastconv

OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "other features": {"kdim": 12, "vdim": 20},
    "other features, batch first": {"kdim": 12, "vdim": 16, "batch_first": True},
    "no bias": {"bias": False},
    "learned key": {"add_bias_kv": True},
    "key of zeros": {"add_zero_attn": True, "batch_first": True},
    "both more keys": {"add_bias_kv": True, "add_zero_attn": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def twins(dtype=torch.float64, embed=16, heads=4, **options):
    modules = []
    for package in (fastconv, torch.nn):
        torch.manual_seed(3)
        modules.append(package.MultiheadAttention(embed, heads, **options).to(dtype))
    return modules


def inputs(options, single=False, L=5, S=7, N=3, dtype=torch.float64):
    sizes = ((L, 16), (S, options.get("kdim", 16)), (S, options.get("vdim", 16)))
    tensors = []
    for length, features in sizes:
        shape = (N, length, features) if options.get("batch_first") else (length, N, features)
        tensors.append(torch.randn((length, features) if single else shape, dtype=dtype))
    return tensors


def masks_of(kind, *shape):
    if kind is None:
        return None
    mask = torch.rand(shape) < 0.3
    mask[..., 0] = False  # a query without a key is NaN in torch's own softmax
    return mask if kind == "bool" else torch.randn(shape, dtype=torch.float64)


def both(modules, *args, **kwargs):
    """Outputs and gradients of all parameters and inputs."""
    results = []
    for module in modules:
        leaves = [t.detach().clone().requires_grad_() for t in args]
        output, weights = module(*leaves, **kwargs)
        grads = torch.autograd.grad(output.square().sum(), [*leaves, *module.parameters()])
        results.append([output, *grads])
        if kwargs.get("need_weights"):
            results[-1].append(weights)
        else:
            assert weights is None
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)


def test_same_constructor_and_state():
    ours, torchs = fastconv.MultiheadAttention, torch.nn.MultiheadAttention
    assert issubclass(ours, torchs)
    assert inspect.signature(ours) == inspect.signature(torchs)
    assert list(inspect.signature(ours.forward).parameters) == list(
        inspect.signature(torchs.forward).parameters
    )
    for options in OPTIONS.values():
        mine, theirs = twins(**options)
        assert repr(mine) == repr(theirs)
        assert list(mine.state_dict()) == list(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value)
        mine.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(mine.state_dict())


@pytest.mark.parametrize("single", [False, True], ids=["batch", "single"])
@every_option
def test_every_mask(options, single):
    N, L, S = (1 if single else 3), 5, 7
    for padding, attn, shape in itertools.product(
        (None, "bool", "float"), (None, "bool", "float"), ((L, S), (N * 4, L, S))
    ):
        given = inputs(options, single)
        both(
            twins(**options),
            *given,
            key_padding_mask=masks_of(padding, *((S,) if single else (N, S))),
            attn_mask=masks_of(attn, *shape),
            need_weights=False,
        )


@every_option
def test_weights(options):
    both(twins(**options), *inputs(options), need_weights=True)
    both(twins(**options), *inputs(options), need_weights=True, average_attn_weights=False)


@every_option
def test_the_causal_hint(options):
    causal = torch.triu(torch.ones(7, 7, dtype=torch.bool), 1)
    for padding in (None, masks_of("bool", 3, 7)):
        given = inputs(options, L=7)
        both(
            twins(**options),
            *given,
            key_padding_mask=padding,
            attn_mask=causal,
            is_causal=True,
            need_weights=False,
        )


def test_self_attention_of_one_tensor():
    x = torch.randn(3, 6, 16, dtype=torch.float64)
    ours, torchs = twins(batch_first=True)
    expected = torchs(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(ours(x, x, x, need_weights=False)[0], expected)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x, x, x, need_weights=False)[0], expected)
    copied = copy.deepcopy(ours)
    torch.testing.assert_close(copied(x, x, x, need_weights=False)[0], expected)


def test_float_mask_has_its_gradient():
    x = torch.randn(5, 2, 16, dtype=torch.float64)
    grads = []
    for module in twins():
        mask = torch.linspace(-1, 1, 25, dtype=torch.float64).view(5, 5).requires_grad_()
        output = module(x, x, x, attn_mask=mask, need_weights=False)[0]
        grads.append(torch.autograd.grad(output.square().sum(), mask)[0])
    torch.testing.assert_close(*grads)


def test_dropout_only_while_training():
    layer = fastconv.MultiheadAttention(16, 4, dropout=0.5)
    x = torch.randn(9, 2, 16)
    assert not torch.equal(*(layer(x, x, x, need_weights=False)[0] for _ in range(2)))
    layer.eval()
    assert torch.equal(*(layer(x, x, x, need_weights=False)[0] for _ in range(2)))


WRONG = {
    "features": lambda q, k, v: ((q[..., 1:], k, v), {}),
    "features of keys": lambda q, k, v: ((q, k[..., 1:], v), {}),
    "lengths": lambda q, k, v: ((q, k[1:], v), {}),
    "batches": lambda q, k, v: ((q, k[:, 1:], v[:, 1:]), {}),
    "ranks": lambda q, k, v: ((q, k[0], v[0]), {}),
    "four axes": lambda q, k, v: ((q[None], k[None], v[None]), {}),
    "no tensor": lambda q, k, v: ((q, [1], v), {}),
    "padding of another length": lambda *qkv: (qkv, {"key_padding_mask": torch.ones(3, 9) > 0}),
    "mask of another size": lambda q, k, v: ((q, k, v), {"attn_mask": torch.ones(5, 9) > 0}),
    "mask of integers": lambda q, k, v: ((q, k, v), {"attn_mask": torch.ones(5, 7).int()}),
    "hint without a mask": lambda q, k, v: ((q, k, v), {"is_causal": True}),
    "another dtype": lambda q, k, v: ((q.float(), k, v), {}),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_mistakes_raise_as_in_torch(wrong):
    args, kwargs = wrong(*inputs({}))
    ours, torchs = (exception_of(m, *args, need_weights=False, **kwargs) for m in twins())
    assert torchs is not None
    assert type(ours) is type(torchs), f"{ours!r} instead of {torchs!r}"


def test_samples_of_torch():
    (info,) = [i for i in module_db if i.module_cls is torch.nn.MultiheadAttention]
    for training in (True, False):
        samples = info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=True, training=training
        )
        for sample in samples:
            made, given = sample.constructor_input, sample.forward_input
            if made.kwargs.get("dropout") and training:
                continue  # other random numbers
            results = []
            for cls in (fastconv.MultiheadAttention, torch.nn.MultiheadAttention):
                torch.manual_seed(3)
                module = cls(*made.args, **made.kwargs).train(training)
                results.append(module(*given.args, **given.kwargs | {"need_weights": False})[0])
            torch.testing.assert_close(*results)


@pytest.mark.parametrize("batch_first", [False, True])
def test_inside_of_a_transformer(batch_first):
    torch.manual_seed(1)
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=batch_first)
    swapped = copy.deepcopy(layer)
    swapped.self_attn = fastconv.MultiheadAttention(16, 4, batch_first=batch_first)
    swapped.self_attn.load_state_dict(layer.self_attn.state_dict())
    x, causal = torch.randn(6, 6, 16), torch.nn.Transformer.generate_square_subsequent_mask(6)
    for training in (True, False):
        for kwargs in ({}, {"src_mask": causal, "is_causal": True}):
            with torch.set_grad_enabled(training):
                expected = layer.train(training)(x, **kwargs)
                actual = swapped.train(training)(x, **kwargs)
            torch.testing.assert_close(actual, expected)


def test_compiles_as_one_graph():
    layer = fastconv.MultiheadAttention(16, 4, batch_first=True)
    compiled = torch.compile(
        lambda x: layer(x, x, x, need_weights=False)[0], backend="aot_eager", fullgraph=True
    )
    x = torch.randn(3, 6, 16)
    torch.testing.assert_close(compiled(x), layer(x, x, x, need_weights=False)[0])
    assert math.prod(compiled(x).shape) == 288
