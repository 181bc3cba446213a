"""Law: to torch attention is its own: arguments, errors, derivatives, transforms, compilers."""

import math

import numpy as np
import pytest
import torch
from operations.mistakes import exception_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.common_methods_invocations import op_db

import fastconv

ours = fastconv.functional.scaled_dot_product_attention
torchs = torch.nn.functional.scaled_dot_product_attention


def math_path(*args, **kwargs):
    with sdpa_kernel(SDPBackend.MATH):
        return torchs(*args, **kwargs)


# ---- Arguments


def shapes_of(*shapes):
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize(
    ("shapes", "kwargs"),
    [
        (((5, 8), (7, 8), (7, 8)), {}),
        (((5, 8), (7, 8), (7, 3)), {"is_causal": True}),
        (((3, 5, 8), (3, 7, 8), (3, 7, 8)), {"scale": 2}),
        (((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)), {}),
        (((2, 1, 4, 5, 8), (1, 3, 4, 7, 8), (2, 3, 1, 7, 6)), {}),
        (((2, 4, 5, 8), (4, 7, 8), (1, 7, 8)), {}),
        (((2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)), {}),
        (((1, 1, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)), {}),
        (((2, 4, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8)), {"enable_gqa": True}),
        (((2, 4, 5, 8), (2, 2, 7, 8), (2, 1, 7, 8)), {"enable_gqa": True}),
        (((4, 5, 8), (2, 7, 8), (2, 7, 8)), {"enable_gqa": True}),
        (((3, 2, 4, 5, 8), (3, 2, 2, 7, 8), (3, 2, 2, 7, 8)), {"enable_gqa": True}),
    ],
)
def test_shapes(shapes, kwargs):
    tensors = shapes_of(*shapes)
    expected = math_path(*tensors, **kwargs)
    actual = ours(*tensors, **kwargs)
    torch.testing.assert_close(actual, expected)
    arrays = [t.numpy() for t in tensors]
    np.testing.assert_allclose(ours(*arrays, **kwargs), expected, atol=1e-12)
    output, lse = ours(*tensors, **kwargs, return_lse=True)
    assert torch.equal(output, actual)
    assert lse.shape == actual.shape[:-1]


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_every_shape(rank, kind):
    """Every subset of the axes is of size 1 or not there; the gradient is that of torch's math."""
    lead = {3: (3,), 4: (2, 3), 5: (2, 2, 3)}[rank]
    q, k, v = shapes_of((*lead, 5, 8), (*lead, 7, 8), (*lead, 7, 8))
    full = (*lead, 5, 7)
    for chosen in range(2**rank):
        shape = [size if chosen >> i & 1 else 1 for i, size in enumerate(full)]
        while len(shape) > 2 and shape[0] == 1 and chosen % 3 == 0:
            shape = shape[1:]
        mask = torch.randn(shape, dtype=torch.float64)
        if kind == "bool":
            mask = mask > -0.3
            torch.testing.assert_close(ours(q, k, v, mask), math_path(q, k, v, mask))
            continue
        results = []
        for function in (ours, math_path):
            leaf = mask.clone().requires_grad_()
            output = function(q, k, v, leaf)
            weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64)
            results.append(
                (output, torch.autograd.grad((output.flatten() * weights).sum(), leaf)[0])
            )
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, msg=lambda text: f"{shape}: {text}")  # noqa: B023


def test_memory_order_is_that_of_the_query():
    q = torch.randn(2, 7, 3, 8)
    for query in (q.transpose(1, 2), q.transpose(1, 2).contiguous()):
        assert ours(query, query, query).stride() == torchs(query, query, query).stride()


def test_rows_without_a_key_are_zero():
    q, k, v = shapes_of((1, 2, 6, 8), (1, 2, 7, 8), (1, 2, 7, 8))
    for mask in (torch.ones(6, 7).bool(), torch.zeros(6, 7, dtype=torch.float64)):
        mask[2] = False if mask.dtype == torch.bool else -math.inf
        output, lse = ours(q, k, v, mask, return_lse=True)
        assert (output[:, :, 2] == 0).all()
        assert (lse[:, :, 2] == -math.inf).all()
        torch.testing.assert_close(output, math_path(q, k, v, mask))
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        for gradient in torch.autograd.grad(ours(*leaves, mask).sum(), leaves):
            assert gradient.isfinite().all()


def is_fused(output):
    """Whether torch's own fused kernel made it: it serves four axes, and no gradient of a mask."""
    return "Flash" in output.grad_fn.name()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_samples_of_torch(dtype):
    """Numbers up to 9 make softmaxes of one key, and gradients of rounding errors: no larger than
    those of torch's own kernel are.
    """
    (entry,) = [e for e in op_db if e.name == "nn.functional.scaled_dot_product_attention"]
    compared = 0
    for sample in entry.sample_inputs("cpu", dtype, requires_grad=True):
        if sample.kwargs.get("dropout_p"):
            continue  # other random numbers
        given = [sample.input, *sample.args]
        wide = [t.detach().double().requires_grad_() for t in given]
        runs = [(math_path, wide), (ours, given), (torchs, given)]
        mask = sample.kwargs.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            mask = mask.double()
        outputs = [math_path(*wide, **sample.kwargs | {"attn_mask": mask})]
        outputs += [function(*given, **sample.kwargs) for function in (ours, torchs)]
        assert outputs[1].dtype == dtype
        assert outputs[1].stride() == outputs[2].stride()
        grad_output = torch.randn_like(outputs[1])
        exact, found, torch_found = (
            [output, *torch.autograd.grad(output, tensors, grad_output.to(output.dtype))]
            for output, (_, tensors) in zip(outputs, runs, strict=True)
        )
        if not is_fused(outputs[2]):
            exact, found, torch_found = exact[:1], found[:1], torch_found[:1]
        for right, mine, theirs in zip(exact, found, torch_found, strict=True):
            bound = 2 * fastconv.testing.relative_bound(dtype, 16) * right.norm()
            assert (mine - right).norm() <= 3 * (theirs - right).norm() + bound, sample
            compared += 1
    assert compared > 10


def test_slopes_that_want_a_gradient_have_one():
    q, k, v = shapes_of((1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8))
    slopes = torch.rand(2, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(5, 7, dtype=torch.float64)
    for given in (None, mask, mask > -0.5):
        assert torch.autograd.gradcheck(lambda s, m=given: ours(q, k, v, m, alibi_slopes=s), slopes)


# ---- Dropout


def test_dropout_follows_the_seed_and_the_probability():
    q, k = torch.zeros(2, 4, 64, 8), torch.zeros(2, 4, 128, 8)
    v = torch.eye(128).expand(2, 4, 128, 128)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(ours(q, k, v, None, 0.3))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    kept = results[0] != 0
    assert abs(kept.double().mean() - 0.7) < 0.01
    for axis in range(4):
        others = [a for a in range(4) if a != axis]
        assert (kept.double().mean(others) - 0.7).abs().max() < 0.07
    torch.testing.assert_close(results[0][kept], torch.full((int(kept.sum()),), 1 / 128 / 0.7))


def test_dropout_of_the_gradient_is_that_of_the_output():
    q, k, v = (t.requires_grad_() for t in shapes_of((1, 2, 6, 8), (1, 2, 7, 8), (1, 2, 7, 8)))

    def function(*tensors):
        torch.manual_seed(3)
        return ours(*tensors, None, 0.4)

    assert torch.autograd.gradcheck(function, (q, k, v))


# ---- Mistakes


def right():
    q, k, v = (torch.randn(2, 4, n, 8) for n in (5, 7, 7))
    return {"query": q, "key": k, "value": v, "attn_mask": None, "dropout_p": 0.0,
            "is_causal": False, "scale": None, "enable_gqa": False}  # fmt: skip


WRONG = {
    "query is a number": {"query": 1},
    "key is a list": {"key": [1.0]},
    "value is None": {"value": None},
    "mask is a list": {"attn_mask": [True]},
    "query of one axis": {"query": torch.randn(8), "key": torch.randn(8), "value": torch.randn(8)},
    "key of other features": {"key": torch.randn(2, 4, 7, 9)},
    "key of other heads": {"key": torch.randn(2, 3, 7, 8), "value": torch.randn(2, 3, 7, 8)},
    "key of another dtype": {"key": torch.randn(2, 4, 7, 8).double()},
    "value of another dtype": {"value": torch.randn(2, 4, 7, 8).bfloat16()},
    "heads that do not divide": {"key": torch.randn(2, 3, 7, 8), "value": torch.randn(2, 3, 7, 8),
                                 "enable_gqa": True},
    "mask of integers": {"attn_mask": torch.ones(5, 7).int()},
    "mask of float64": {"attn_mask": torch.zeros(5, 7).double()},
    "mask of bfloat16": {"attn_mask": torch.zeros(5, 7).bfloat16()},
    "mask that does not broadcast": {"attn_mask": torch.zeros(5, 6)},
    "mask of too many axes": {"attn_mask": torch.zeros(3, 1, 1, 5, 7)},
    "dropout beyond 1": {"dropout_p": 2.0},
    "dropout below 0": {"dropout_p": -0.5},
    "dropout of a word": {"dropout_p": "half"},
    "is_causal of a number": {"is_causal": 1},
    "scale of a word": {"scale": "large"},
    "enable_gqa of a word": {"enable_gqa": "yes"},
    "integers": {name: torch.ones(2, 4, 7, 8).int() for name in ("query", "key", "value")},
    "booleans": {name: torch.ones(2, 4, 7, 8).bool() for name in ("query", "key", "value")},
}  # fmt: skip


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_mistakes_raise_as_in_torch(change):
    call = right() | change
    expected, error = exception_of(torchs, **call), exception_of(ours, **call)
    assert error is not None
    assert type(error) is type(expected), f"{error!r} instead of {expected!r}"
    assert "expected" in str(error) or "must be Tensor" in str(error)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"value": torch.randn(2, 4, 6, 8)}, RuntimeError),  # torch reads beyond its end
        ({"window_size": 3}, TypeError),
        ({"window_size": (1, 2, 3)}, TypeError),
        ({"window_size": (1.0, 2)}, TypeError),
        ({"window_size": (-2, 2)}, RuntimeError),
        ({"softcap": -1.0}, RuntimeError),
        ({"softcap": math.nan}, RuntimeError),
        ({"softcap": "x"}, TypeError),
        ({"alibi_slopes": torch.ones(3)}, RuntimeError),
        ({"alibi_slopes": torch.ones(3, 4)}, RuntimeError),
        ({"alibi_slopes": torch.ones(4).int()}, RuntimeError),
        ({"return_lse": 1}, TypeError),
        ({"dropout_p": math.nan}, RuntimeError),
    ],
)
def test_mistakes_in_what_torch_lacks(change, kind):
    for convert in (lambda v: v, lambda v: v.numpy() if isinstance(v, torch.Tensor) else v):
        call = {name: convert(value) for name, value in (right() | change).items()}
        error = exception_of(ours, **call)
        assert isinstance(error, kind), repr(error)
        assert "expected" in str(error)


def test_gradient_ops_refuse_what_does_not_fit():
    q, k, v = (torch.randn(2, 4, n, 8) for n in (5, 7, 7))
    output, lse = torch.ops.fastconv.attention(q, k, v)
    fits = [output, q, k, v, output, lse]
    for op in (torch.ops.fastconv.attention_backward, torch.ops.fastconv.attention_mask_grad):
        for place, tensor in enumerate(fits):
            for wrong in (
                tensor[..., :-1],
                tensor[0],
                tensor.bool(),
                tensor[:, :0],
                tensor.double(),
            ):
                given = [*fits[:place], wrong, *fits[place + 1 :], torch.zeros(5, 7)[None, None]]
                with pytest.raises((RuntimeError, NotImplementedError)):
                    op(*given)
    with pytest.raises(RuntimeError):
        torch.ops.fastconv.attention_mask_grad(*fits)
