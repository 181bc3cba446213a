"""Law: fastconv's recurrent modules are torch.nn's: arguments, parameters, results, errors."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from operations.mistakes import exception_of
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fastconv
from fastconv.testing import make_input

I, H, N, T = 5, 18, 4, 6  # noqa: E741 (the letters of recurrent layers)
LAYERS = ("LSTM", "GRU", "RNN")
OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "batch first": {"batch_first": True},
    "both directions": {"bidirectional": True},
    "dropout": {"num_layers": 3, "dropout": 0.4},
    "everything": {
        **{"num_layers": 2, "bias": False, "batch_first": True},
        **{"dropout": 0.3, "bidirectional": True},
    },
    "projection": {"proj_size": 7},
    "projection and everything": {
        **{"num_layers": 2, "batch_first": True, "dropout": 0.3, "bidirectional": True},
        **{"proj_size": 17},
    },
    "relu": {"nonlinearity": "relu", "num_layers": 2},
}
INPUTS = ("padded", "unbatched", "packed", "packed unsorted")
MODULES = [
    pytest.param(kind, options, id=f"{kind}-{name}")
    for kind in LAYERS
    for name, options in OPTIONS.items()
    if ("proj_size" not in options or kind == "LSTM")
    and ("nonlinearity" not in options or kind == "RNN")
]
every_module = pytest.mark.parametrize(("kind", "options"), MODULES)
every_layer = pytest.mark.parametrize("kind", LAYERS)


def pair_of(kind, options, dtype=torch.float64):
    """torch's module and ours with the same parameters."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(I, H, **options, dtype=dtype)
    ours = getattr(fastconv, kind)(I, H, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make_call(kind, options, form, with_state, dtype=torch.float64):
    """The module's arguments, made anew from leaves, and the leaves."""
    sizes = [T, I] if form == "unbatched" else [N, T, I] if "batch_first" in options else [T, N, I]
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    leaves = [make_input(tuple(sizes), dtype, seed=1).requires_grad_()]
    if with_state:
        batch = [] if form == "unbatched" else [N]
        widths = [options.get("proj_size", H), H][: 2 if kind == "LSTM" else 1]
        for seed, width in enumerate(widths):
            size = (layers, *batch, width)
            leaves.append(make_input(size, dtype, seed=2 + seed).requires_grad_())
    x = leaves[0]
    if form.startswith("packed"):
        lengths = [2, 6, 1, 4] if form == "packed unsorted" else [6, 4, 4, 1]
        x = pack_padded_sequence(
            x, lengths, options.get("batch_first", False), enforce_sorted=form == "packed"
        )
    state = tuple(leaves[1:]) if kind == "LSTM" else leaves[-1]
    return (x, state) if with_state else (x,), leaves


def tensors_of(result):
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors_of(part)]


@pytest.mark.parametrize("with_state", [False, True], ids=["", "with state"])
@pytest.mark.parametrize("form", INPUTS)
@every_module
def test_results_and_gradients_are_those_of_torch(kind, options, form, with_state):
    found = []
    for module in pair_of(kind, options):
        call, leaves = make_call(kind, options, form, with_state)
        torch.manual_seed(5)  # of the dropout
        result = module(*call)
        tensors = tensors_of(result)
        total = sum(
            (each * make_input(tuple(each.shape), "float64", seed=9 + i)).sum()
            for i, each in enumerate(tensors)
        )
        gradients = torch.autograd.grad(total, [*leaves, *module.parameters()])
        found.append((result, tensors, gradients))
    (theirs, expected, wanted), (ours, tensors, gradients) = found
    assert type(ours[0]) is type(theirs[0])
    assert type(ours[1]) is type(theirs[1])
    for one, other in zip(tensors, expected, strict=True):
        assert one.stride() == other.stride()
    for one, other in zip((*tensors, *gradients), (*expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    if isinstance(ours[0], PackedSequence):
        for one, other in zip(ours[0][1:], theirs[0][1:], strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_module
def test_narrow_types(kind, options, dtype):
    """As exact as their type, against torch in float64."""
    _, ours = pair_of(kind, options, dtype)
    theirs = copy.deepcopy(pair_of(kind, options)[0])
    theirs.load_state_dict({name: value.double() for name, value in ours.state_dict().items()})
    call, _ = make_call(kind, options, "padded", True, dtype)
    wide, _ = make_call(kind, options, "padded", True, dtype)
    wide = [tuple(e.double() for e in w) if isinstance(w, tuple) else w.double() for w in wide]
    bound = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    ours.eval(), theirs.eval()
    for one, other in zip(tensors_of(ours(*call)), tensors_of(theirs(*wide)), strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() <= bound * other.norm()


@every_module
def test_modules_look_like_torchs(kind, options):
    theirs, ours = pair_of(kind, options)
    assert isinstance(ours, getattr(torch.nn, kind))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.flatten_parameters() is None
    call, _ = make_call(kind, options, "padded", False)
    ours.eval()
    expected = ours(*call)[0]
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(*call)[0], expected)
    stored = io.BytesIO()
    torch.save(ours, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored, weights_only=False)(*call)[0], expected)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell", "RNNCell relu"])
def test_cells(kind, bias, with_state, batched):
    kind, _, nonlinearity = kind.partition(" ")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    found = []
    for package in (torch.nn, fastconv):
        torch.manual_seed(0)
        cell = getattr(package, kind)(I, H, bias=bias, dtype=torch.float64, **options)
        batch = [N] if batched else []
        leaves = [make_input((*batch, I), "float64", seed=1).requires_grad_()]
        if with_state:
            for seed in range(2 if kind == "LSTMCell" else 1):
                leaves.append(make_input((*batch, H), "float64", seed=2 + seed).requires_grad_())
        state = tuple(leaves[1:]) if kind == "LSTMCell" else leaves[-1]
        result = cell(leaves[0], state) if with_state else cell(leaves[0])
        tensors = tensors_of(result)
        total = sum((each * each).sum() for each in tensors)
        gradients = torch.autograd.grad(total, [*leaves, *cell.parameters()])
        found.append((repr(cell), tensors, gradients))
    (name, expected, wanted), (ours, tensors, gradients) = found
    assert ours == name
    for one, other in zip((*tensors, *gradients), (*expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@every_module
def test_second_derivative(kind, options):
    found = []
    for module in pair_of(kind, options):
        call, leaves = make_call(kind, options, "packed", True)
        torch.manual_seed(5)
        total = sum(each.square().sum() for each in tensors_of(module(*call)))
        first = torch.autograd.grad(total, [*leaves, *module.parameters()], create_graph=True)
        total = sum(each.square().sum() for each in first)
        found.append(torch.autograd.grad(total, [*leaves, *module.parameters()]))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def wrong_calls(kind):
    """Arguments that torch refuses, and some that it accepts."""
    ones, zeros = torch.ones, torch.zeros

    def state(*sizes):
        return tuple(zeros(*sizes) for _ in range(2)) if kind == "LSTM" else zeros(*sizes)

    return {
        "four dimensions": (ones(1, T, N, I),),
        "one dimension": (ones(I),),
        "input size": (ones(T, N, I + 1),),
        "no step": (ones(0, N, I),),
        "no sequence": (ones(T, 0, I),),
        "input's type": (ones(T, N, I).double(),),
        "integers": (ones(T, N, I).int(),),
        "state of an unbatched input": (ones(T, I), state(1, N, H)),
        "state without batch": (ones(T, N, I), state(1, H)),
        "state's batch": (ones(T, N, I), state(1, N + 1, H)),
        "state's size": (ones(T, N, I), state(1, N, H + 1)),
        "state's layers": (ones(T, N, I), state(2, N, H)),
        "packed, state's batch": (pack_sequence([ones(3, I), ones(2, I)]), state(1, 3, H)),
        "packed, input size": (pack_sequence([ones(3, I + 1), ones(2, I + 1)]),),
        "array": (np.ones((T, N, I), "float32"),),
        "nothing": (None,),
        "right": (ones(T, N, I), state(1, N, H)),
    }


@pytest.mark.parametrize("mistake", wrong_calls("LSTM"))
@every_layer
def test_mistakes_raise_as_in_torch(kind, mistake):
    theirs, ours = pair_of(kind, {}, torch.float32)
    call = wrong_calls(kind)[mistake]
    expected, error = exception_of(theirs, *call), exception_of(ours, *call)
    assert type(error) is type(expected), f"{error!r} instead of {expected!r}"
    if expected is None:
        for one, other in zip(tensors_of(ours(*call)), tensors_of(theirs(*call)), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_mistakes_of_cells_raise_as_in_torch(kind):
    ones = torch.ones
    cells = [getattr(package, kind)(I, H) for package in (torch.nn, fastconv)]

    def state(*sizes):
        return (ones(*sizes), ones(*sizes)) if kind == "LSTMCell" else ones(*sizes)

    for call in [
        (ones(2, 3, I),),
        (ones(2, I + 1),),
        (ones(2, I).double(),),
        (ones(2, I).int(),),
        (ones(2, I), state(3, H)),
        (ones(2, I), state(2, H + 1)),
        (ones(2, I), state(1, 2, H)),
        (ones(2, I), state(2, H)),
        (ones(0, I), state(0, H)),
    ]:
        expected, error = (exception_of(cell, *call) for cell in cells)
        assert type(error) is type(expected), f"{error!r} instead of {expected!r}"


def test_wrong_sizes_of_modules_raise_as_in_torch():
    for options in (
        {"hidden_size": 4, "proj_size": 4},
        {"hidden_size": 4, "proj_size": -1},
        {"hidden_size": 0},
        {"hidden_size": 4, "num_layers": 0},
        {"hidden_size": 4, "dropout": 1.5},
        {"hidden_size": 4, "batch_first": 1},
    ):
        expected = exception_of(torch.nn.LSTM, 3, **options)
        assert type(exception_of(fastconv.LSTM, 3, **options)) is type(expected)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*LAYERS, "LSTMCell", "GRUCell", "RNNCell"])
def test_autocast_as_torch(kind, low):
    theirs, ours = pair_of(kind, {}, torch.float32)
    sizes = (N, I) if kind.endswith("Cell") else (T, N, I)
    x = make_input(sizes, "float32", seed=1)
    for dtype in (torch.float32, low):
        with torch.autocast("cpu", low):
            try:
                expected = tensors_of(theirs(x.to(dtype)))
            except RuntimeError:
                continue  # torch itself cannot
            found = tensors_of(ours(x.to(dtype)))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=3e-2, atol=3e-2)
    with torch.autocast("cpu", low):
        sum(each.sum() for each in tensors_of(ours(x))).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in ours.parameters())


@every_layer
def test_compiles_into_one_graph(kind):
    options = {"num_layers": 2, "bidirectional": True}
    _, ours = pair_of(kind, options, torch.float32)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for length in (T, T + 3):
        x = make_input((length, N, I), "float32", seed=length)
        for one, other in zip(tensors_of(compiled(x)), tensors_of(ours(x)), strict=True):
            assert torch.equal(one, other)
        total, wanted = (sum(t.square().sum() for t in tensors_of(m(x))) for m in (compiled, ours))
        parameters = list(ours.parameters())
        for one, other in zip(
            torch.autograd.grad(total, parameters),
            torch.autograd.grad(wanted, parameters),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


@every_layer
def test_exports_as_one_op_per_layer(kind):
    _, ours = pair_of(kind, {"num_layers": 2}, torch.float32)
    x = make_input((T, N, I), "float32", seed=1)
    program = torch.export.export(ours.eval(), (x,))
    named = [node for node in program.graph.nodes if "fastconv" in str(node.target)]
    assert len(named) == 2
    assert torch.equal(program.module()(x)[0], ours(x)[0])


def test_functional_call_sees_other_weights():
    _, ours = pair_of("LSTM", {}, torch.float32)
    x = make_input((T, N, I), "float32", seed=1)
    zeros = {name: torch.zeros_like(value) for name, value in ours.named_parameters()}
    assert torch.func.functional_call(ours, zeros, (x,))[0].abs().max() == 0
    assert ours(x)[0].abs().max() > 0


def test_arrays_go_through_the_same_layers():
    """NumPy arrays take torch.lstm's arguments too, and give what tensors give."""
    for kind, options in (("LSTM", {"num_layers": 2, "bidirectional": True}), ("GRU", {})):
        _, ours = pair_of(kind, options, torch.float32)
        x = make_input((T, N, I), "float32", seed=1)
        expected = tensors_of(ours(x))
        layers = len(expected[1])
        state = np.zeros((layers, N, H), "float32")
        params = [parameter.detach().numpy() for parameter in ours.parameters()]
        function = getattr(fastconv.functional, kind.lower())
        found = function(
            *(x.numpy(), (state, state) if kind == "LSTM" else state, params, True),
            *(options.get("num_layers", 1), 0.0, False, "bidirectional" in options, False),
        )
        for one, other in zip(found, expected, strict=True):
            assert type(one) is np.ndarray
            np.testing.assert_allclose(one, other.detach().numpy(), rtol=1e-6, atol=1e-6)
