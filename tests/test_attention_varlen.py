"""Law: packed sequences are attended to as if each were alone."""

import numpy as np
import pytest
import torch
from operations.mistakes import exception_of

import fastconv

varlen = fastconv.functional.attention_varlen
attention = fastconv.functional.scaled_dot_product_attention
QUERIES, KEYS = [0, 3, 3, 10, 11], [0, 5, 9, 9, 20]


def packed(dtype=torch.float64):
    return [torch.randn(n, h, d, dtype=dtype) for n, h, d in ((11, 4, 8), (20, 2, 8), (20, 2, 6))]


def alone(q, k, v, queries, keys, **kwargs):
    """One sequence after the other, into memory of their own."""
    output, lse = q.new_zeros(len(q), q.shape[1], v.shape[2]), q.new_zeros(q.shape[1], len(q))
    slopes = kwargs.pop("alibi_slopes", None)
    for i in range(len(queries) - 1):
        a, b, c, d = queries[i], queries[i + 1], keys[i], keys[i + 1]
        one = (t.transpose(0, 1)[None] for t in (q[a:b], k[c:d], v[c:d]))
        each = slopes[i] if slopes is not None and slopes.ndim == 2 else slopes
        found = attention(*one, enable_gqa=True, return_lse=True, alibi_slopes=each, **kwargs)
        output[a:b], lse[:, a:b] = found[0][0].transpose(0, 1), found[1][0]
    return output, lse


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"is_causal": True},
        {"window_size": (2, 1), "scale": 0.3},
        {"softcap": 2.0, "alibi_slopes": torch.rand(4)},
        {"alibi_slopes": torch.rand(4, 4)},
    ],
)
def test_values_and_gradients(kwargs):
    results = []
    for function in (varlen, lambda *a, **k: alone(*a, QUERIES, KEYS, **k)):
        torch.manual_seed(1)
        leaves = [t.requires_grad_() for t in packed()]
        boundaries = () if function is not varlen else (torch.tensor(QUERIES), torch.tensor(KEYS))
        more = {"return_lse": True} if function is varlen else {}
        output, lse = function(*leaves, *boundaries, **kwargs, **more)
        results.append([output, lse, *torch.autograd.grad(output.square().sum(), leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_numpy_arrays():
    q, k, v = packed()
    expected, _ = alone(q, k, v, QUERIES, KEYS)
    output = varlen(q.numpy(), k.numpy(), v.numpy(), np.array(QUERIES, np.int32), KEYS)
    assert type(output) is np.ndarray
    np.testing.assert_allclose(output, expected, atol=1e-12)


def test_nothing_at_all():
    q = torch.zeros(0, 2, 8)
    for boundaries in ([0], [0, 0], [0, 0, 0]):
        assert varlen(q, q, q[..., :3], boundaries).shape == (0, 2, 3)


def test_keys_have_the_lengths_of_the_queries_unless_told():
    x = torch.randn(11, 2, 8)
    assert torch.equal(varlen(x, x, x, QUERIES), varlen(x, x, x, QUERIES, QUERIES))


@pytest.mark.parametrize(
    ("queries", "keys", "kind"),
    [
        ([0, 3, 2, 11], KEYS[:4], RuntimeError),
        ([0, 3, 3, 10, 12], KEYS, RuntimeError),
        ([0, 3, 3, 10, 2**62], KEYS, RuntimeError),
        ([0, 3, 3, 10, 10], KEYS, RuntimeError),
        ([1, 3, 3, 10, 11], KEYS, RuntimeError),
        ([0, 3, -4, 10, 11], KEYS, RuntimeError),
        ([], KEYS, RuntimeError),
        (QUERIES, KEYS[:-1], RuntimeError),
        (QUERIES, [0, 5, 20], RuntimeError),
        (QUERIES, None, RuntimeError),
        ([0, 3.5, 3, 10, 11], KEYS, TypeError),
        (11, KEYS, TypeError),
        ("0 11", KEYS, TypeError),
        (torch.tensor([QUERIES]), KEYS, TypeError),
        (torch.tensor(QUERIES, dtype=torch.float32), KEYS, TypeError),
    ],
)
def test_boundaries_that_do_not_fit(queries, keys, kind):
    for tensors in (packed(), [t.numpy() for t in packed()]):
        error = exception_of(varlen, *tensors, queries, keys)
        assert type(error) is kind, repr(error)
        assert "attention_varlen: expected" in str(error)


def test_tensors_that_do_not_fit():
    q, k, v = packed()
    for wrong in ((q[0], k, v), (q, k[:5], v), (1, k, v), (q[:, :3], k, v), (q.float(), k, v)):
        assert isinstance(exception_of(varlen, *wrong, QUERIES, KEYS), (RuntimeError, TypeError))
