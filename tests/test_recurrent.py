"""Law: lstm, gru, rnn_tanh and rnn_relu are their formula: values, gradients of every order, on
every instruction set, for every length, in every door.
"""

import native
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv.reference import recurrent as reference
from fastconv.testing import assert_close, make_input

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# T, N, I, H, size of the projection, lengths, direction: the name is the reason.
SHAPES = {
    "one of everything": (1, 1, 1, 1, 0, None, False),
    "one step": (1, 5, 7, 9, 0, None, False),
    "one step of many sequences": (1, 70, 40, 37, 0, None, False),
    "one step of long sums": (1, 11, 150, 70, 0, None, True),
    "one step, projected": (1, 3, 9, 21, 5, None, False),
    "one sequence": (6, 1, 5, 33, 0, None, False),
    "backwards": (5, 3, 4, 17, 0, None, True),
    "units fill vectors": (3, 4, 16, 64, 0, None, False),
    "more rows than registers": (4, 21, 3, 18, 0, None, True),
    "many units": (3, 2, 10, 260, 0, None, False),
    "two threads' worth": (3, 30, 8, 100, 0, None, False),
    "lengths": (6, 9, 5, 20, 0, (6, 6, 5, 3, 3, 3, 2, 1, 1), False),
    "lengths backwards": (6, 9, 5, 20, 0, (6, 6, 5, 3, 3, 3, 2, 1, 1), True),
    "projection": (4, 5, 6, 19, 7, None, False),
    "projection of two threads' worth": (3, 20, 6, 150, 40, None, True),
    "projection and lengths": (4, 3, 6, 21, 18, (4, 2, 1), True),
    "no input": (3, 2, 0, 4, 0, None, False),
    "no sequence": (3, 0, 4, 5, 0, None, False),
    "no step": (0, 3, 4, 5, 0, None, False),
}
CASES = [
    pytest.param(cell, shape, id=f"{cell}-{shape}")
    for cell in CELLS
    for shape, sizes in SHAPES.items()
    if cell == "lstm" or not sizes[4]
]
SMALL = [
    pytest.param(cell, shape, id=f"{cell}-{shape}")
    for cell in CELLS
    for shape in ("one sequence", "backwards", "lengths backwards", "projection and lengths")
    if cell == "lstm" or not SHAPES[shape][4]
]
every_case = pytest.mark.parametrize(("cell", "shape"), CASES)
small_cases = pytest.mark.parametrize(("cell", "shape"), SMALL)
every_cell = pytest.mark.parametrize("cell", CELLS)


def make(cell, shape, dtype=torch.float32, small=False):
    """The op's arguments, but for `save`; small: few enough for derivatives by differences."""
    T, N, inputs, H, P, lengths, reverse = SHAPES[shape]
    if small:
        N, H, P = min(N, 3), min(H, 4), min(P, 2)
        lengths = lengths and (T, *lengths[-N + 1 :])
    width, scale = P or H, (P or H) ** -0.5
    batch_sizes = None
    size = (T, N, inputs)
    if lengths:
        batch_sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
        size = (int(batch_sizes.sum()), inputs)

    def weight(*sizes, seed):
        return (make_input(sizes, "float64", seed=seed) * scale).to(dtype)

    rows = GATES[cell] * H
    states = [make_input((N, width), dtype, seed=1)]
    if cell == "lstm":
        states.append(make_input((N, H), dtype, seed=2))
    weights = [weight(rows, inputs, seed=3), weight(rows, width, seed=4)]
    weights += [weight(rows, seed=5), weight(rows, seed=6)]
    if cell == "lstm":
        weights.append(weight(P, H, seed=7) if P else None)
    return [make_input(size, dtype), *states, *weights, batch_sizes, reverse]


def op(cell):
    return getattr(torch.ops.fastconv, cell)


def as_arrays(arguments, dtype=None):
    def convert(value):
        if not isinstance(value, torch.Tensor):
            return value
        floating = value.is_floating_point()
        return (value.to(dtype) if dtype and floating else value).detach().numpy()

    return [convert(value) for value in arguments]


def check(cell, shape, dtype, context=""):
    arguments = make(cell, shape, dtype)
    length = 8 * (arguments[0].shape[-1] + sum(SHAPES[shape][3:5]))
    truth = getattr(reference, cell)(*as_arrays(arguments, torch.float64), True)
    for save in (False, True):
        results = op(cell)(*arguments, save)
        count = len(truth) - (0 if save else 1)
        for number, (ours, wanted) in enumerate(zip(results[:count], truth, strict=False)):
            assert_close(ours, wanted, reduction_length=length, context=f"{context} {number}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_case
def test_values_are_those_of_the_reference_on_every_instruction_set(cell, shape, dtype):
    core = native.core()
    before = core.isa()
    try:
        for isa in core.available_isas():
            core.set_isa(isa)
            check(cell, shape, dtype, isa)
    finally:
        core.set_isa(before)


def gradients(cell, arguments, function, weights_of):
    """By every tensor, of a weighted sum of all results that have a derivative."""
    leaves = [
        value.detach().requires_grad_()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for value in arguments
    ]
    results = function(*leaves)[: 3 if cell == "lstm" else 2]
    total = sum((r.double() * w).sum() for r, w in zip(results, weights_of(results), strict=True))
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    return torch.autograd.grad(total, wanted, materialize_grads=True)


def random_weights(results):
    return [make_input(tuple(r.shape), "float64", seed=30 + i) for i, r in enumerate(results)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@every_case
def test_gradients_are_those_of_the_formula_on_every_instruction_set(cell, shape, dtype):
    core = native.core()
    arguments = make(cell, shape, dtype)
    wide = [
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in arguments
    ]
    formula = getattr(fastconv.ops.recurrent, cell).torch
    truth = gradients(cell, wide, formula, random_weights)
    before = core.isa()
    try:
        for isa in core.available_isas():
            core.set_isa(isa)
            for save in (True, False):  # without: computed again
                found = gradients(
                    cell, arguments, lambda *a, save=save: op(cell)(*a, save), random_weights
                )
                for number, (ours, wanted) in enumerate(zip(found, truth, strict=True)):
                    assert ours.dtype == dtype
                    check_norm(ours, wanted, dtype, f"{isa} {number}")
    finally:
        core.set_isa(before)


def check_norm(ours, wanted, dtype, context):
    """The relative error of the whole: single elements are sums that cancel."""
    bound = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    error = (ours.double() - wanted).norm() / wanted.norm().clamp_min(1e-9)
    assert error <= bound[dtype], f"{context}: {error}"


@small_cases
def test_derivatives_by_differences(cell, shape):
    arguments = make(cell, shape, torch.float64, small=True)
    *tensors, batch_sizes, reverse = arguments
    present = [i for i, tensor in enumerate(tensors) if tensor is not None]
    leaves = [tensors[i].requires_grad_() for i in present]
    results = 3 if cell == "lstm" else 2

    def function(*given):
        full = list(tensors)
        for i, tensor in zip(present, given, strict=True):
            full[i] = tensor
        return getattr(fastconv.ops.recurrent, cell).call(*full, batch_sizes, reverse, True)[
            :results
        ]

    assert gradcheck(function, leaves, fast_mode=True)
    assert gradcheck(function, leaves, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@small_cases
def test_through_time_has_a_derivative_of_its_own(cell, shape):
    """The backward ops are public: gradcheck of them, and both formulas of them agree."""
    arguments = make(cell, shape, torch.float64, small=True)
    *tensors, batch_sizes, reverse = arguments
    results = op(cell)(*arguments, True)
    grads = random_weights(results[: 3 if cell == "lstm" else 2])
    if cell == "lstm":
        inputs = [*grads, results[3], tensors[2], tensors[4], tensors[7]]
    elif cell == "gru":
        inputs = [*grads, results[2], results[0], tensors[1], tensors[3]]
    else:
        inputs = [*grads, results[0] - 0.1, tensors[3]]  # relu's has no derivative where it is 0
    backward = op(f"{cell}_backward")
    truth = getattr(reference, f"{cell}_backward")(*as_arrays([*inputs, batch_sizes, reverse]))
    formula = getattr(fastconv.ops.recurrent, f"{cell}_backward").torch
    for ours, wanted, by_torch in zip(
        backward(*inputs, batch_sizes, reverse),
        truth,
        formula(*inputs, batch_sizes, reverse),
        strict=True,
    ):
        assert_close(ours, wanted, reduction_length=100)
        assert_close(by_torch, wanted, reduction_length=100)
    present = [i for i, each in enumerate(inputs) if each is not None]
    leaves = [inputs[i].detach().requires_grad_() for i in present]

    def function(*given):
        full = list(inputs)
        for i, tensor in zip(present, given, strict=True):
            full[i] = tensor
        found = backward(*full, batch_sizes, reverse)
        return tuple(each for each in found if each.numel())

    assert gradcheck(function, leaves, fast_mode=True)


@small_cases
def test_opcheck(cell, shape):
    arguments = make(cell, shape, small=True)
    for needs in (False, True):
        given = [
            value.requires_grad_(needs)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for value in arguments
        ]
        torch.library.opcheck(op(cell), (*given, True))


@every_case
def test_fake_tells_the_truth(cell, shape):
    for dtype in DTYPES:
        arguments = make(cell, shape, dtype)
        for save in (False, True):
            real = op(cell)(*arguments, save)
            meta = [
                value.to("meta") if isinstance(value, torch.Tensor) else value
                for value in arguments
            ]
            for ours, fake in zip(real, op(cell)(*meta, save), strict=True):
                assert (ours.shape, ours.dtype, ours.stride()) == (
                    *(fake.shape, fake.dtype, fake.stride()),
                )


@every_case
def test_same_bits_for_every_number_of_threads(cell, shape):
    arguments = make(cell, shape)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(
                (
                    *op(cell)(*arguments, True),
                    *gradients(cell, arguments, lambda *a: op(cell)(*a, True), random_weights),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for first, second in zip(found[0], other, strict=True):
            assert torch.equal(first, second)


@every_case
def test_any_strides_give_the_same_bits(cell, shape):
    arguments = make(cell, shape)

    def spread(value):
        if not isinstance(value, torch.Tensor):
            return value
        wide = torch.zeros([2 * extent + 1 for extent in value.shape], dtype=value.dtype)
        view = wide[tuple(slice(0, 2 * extent, 2) for extent in value.shape)]
        return view.copy_(value)

    results = op(cell)(*arguments, True)
    for ours, plain in zip(op(cell)(*map(spread, arguments), True), results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    turned = [
        value.mT.contiguous().mT if isinstance(value, torch.Tensor) and value.dim() == 2 else value
        for value in arguments
    ]
    for ours, plain in zip(op(cell)(*turned, True), results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@every_case
def test_numpy_door(cell, shape):
    core = native.core()
    arguments = make(cell, shape)
    expected = op(cell)(*arguments, True)
    found = getattr(core, cell)(*as_arrays(arguments), True)
    for ours, torchs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, torchs.numpy())


@pytest.mark.parametrize("backend", ["numba", "numpy", "torch"])
@every_case
def test_every_backend(cell, shape, backend):
    arguments = make(cell, shape)
    expected = op(cell)(*arguments, True)
    grads = gradients(cell, arguments, lambda *a: op(cell)(*a, True), random_weights)
    with fastconv.backend(backend):
        found = op(cell)(*arguments, True)
        others = gradients(cell, arguments, lambda *a: op(cell)(*a, True), random_weights)
    for ours, theirs in zip((*expected, *grads), (*found, *others), strict=True):
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_cell
def test_long_sequence_keeps_its_digits(cell):
    torch.manual_seed(0)
    arguments = make(cell, "two threads' worth")
    arguments[0] = make_input((500, 30, 8), seed=9)
    wide = [each.double() if isinstance(each, torch.Tensor) else each for each in arguments]
    truth = getattr(fastconv.ops.recurrent, cell).torch(*wide)[0]
    output = op(cell)(*arguments)[0]
    if cell == "rnn_relu":  # grows or dies: nothing bounds it
        truth, output = truth[:20], output[:20]
    assert (output - truth).norm() / truth.norm() <= 2e-6


@every_cell
def test_huge_gates_saturate_and_nan_stays_with_its_sequence(cell):
    arguments = make(cell, "more rows than registers")
    arguments[0] = arguments[0] * 1e6
    output = op(cell)(*arguments)[0]
    if cell != "rnn_relu":
        assert output.abs().max() <= max(1.0001, arguments[1].abs().max())
    assert not output.isnan().any()
    arguments[0][2, 5, 0] = float("nan")
    output = op(cell)(*arguments)[0]
    touched = output.isnan().all(-1)
    wanted = torch.zeros_like(touched)
    wanted[:3, 5] = True  # backwards: steps 2, 1, 0
    assert torch.equal(touched, wanted)
    assert torch.equal(output.isnan().any(-1), wanted)


@every_cell
def test_wrong_calls_raise(cell):
    """Every door and the fake kernel: RuntimeError or NotImplementedError, with words."""
    core = native.core()
    right = make(cell, "lengths")
    sizes = len(right) - 2
    wrongs = [(i, right[i][..., :-1]) for i in range(sizes) if right[i] is not None]
    wrongs += [(i, right[i][None]) for i in range(sizes) if right[i] is not None]
    wrongs += [(i, right[i].double()) for i in range(sizes) if right[i] is not None]
    wrongs += [(0, right[0].int()), (sizes, None), (sizes, right[sizes].int())]
    for position, value in wrongs:
        call = [*right[:position], value, *right[position + 1 :]]
        with pytest.raises((RuntimeError, NotImplementedError), match="expected"):
            op(cell)(*call)
        with pytest.raises((RuntimeError, NotImplementedError), match="expected"):
            getattr(core, cell)(*as_arrays(call))
        meta = [each.to("meta") if isinstance(each, torch.Tensor) else each for each in call]
        if value is None or value.dtype != torch.int32 or position == sizes:
            with pytest.raises((RuntimeError, NotImplementedError)):
                op(cell)(*meta)
    counts = right[sizes]
    for bad in ([9, 9, 0], [9, -1, 3], [8, 9], [3, 2], [2**62, 2**62, 2**62, 2**62], []):
        call = [*right[:sizes], torch.tensor(bad, dtype=torch.int64), right[-1]]
        with pytest.raises(RuntimeError, match="expected"):
            op(cell)(*call)
    assert counts.tolist() == [9, 7, 6, 3, 3, 2]


@every_cell
def test_vmap_and_func_gradients(cell):
    arguments = make(cell, "backwards", torch.float64, small=True)
    *tensors, batch_sizes, reverse = arguments
    call = getattr(fastconv.ops.recurrent, cell).call

    def function(x):
        return call(x, *tensors[1:], batch_sizes, reverse, False)[0]

    stack = torch.stack([tensors[0], tensors[0] * 2])
    expected = torch.stack([function(x) for x in stack])
    torch.testing.assert_close(torch.vmap(function)(stack), expected)

    def raw(x):
        return op(cell)(x, *tensors[1:], batch_sizes, reverse, False)[0]

    torch.testing.assert_close(torch.vmap(raw)(stack), expected)
    leaf = tensors[0].detach().requires_grad_()
    (wanted,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
    found = torch.func.grad(lambda x: function(x).square().sum())(tensors[0])
    torch.testing.assert_close(found, wanted)
