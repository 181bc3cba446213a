"""``fastconv.functional.attention_varlen``: attention of sequences that are packed one behind the
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastconv._arguments import expect_bool, integer
from fastconv._attention import scaled_dot_product_attention
from fastconv._torch_private import HAS_TORCH, torch
from fastconv.ops._check import expect

_NAME = "attention_varlen"


def attention_varlen(
    query: Any,
    key: Any,
    value: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    return_lse: bool = False,
) -> Any:
    """:func:`scaled_dot_product_attention` of sequences of different lengths, without padding.

    Query i sees the keys of its own sequence alone.

    Args:
        query: [T, H, D], the queries of all sequences one behind the other.
        key: [U, G, D], G divides H.
        value: [U, G, E].
        cu_seqlens_q: [N + 1] ints, where each sequence begins, then T: ``[0, 3, 8]`` for 3 and 5.
        cu_seqlens_k: the same of key and value; None if they have the lengths of the queries.
        dropout_p, is_causal, scale, window_size, softcap:
            as for :func:`scaled_dot_product_attention`, by positions in a sequence.
        alibi_slopes: [H], or [N, H].
        return_lse: return (output, lse), lse [H, T].

    Returns:
        [T, H, E].

    Raises:
        RuntimeError: as :func:`scaled_dot_product_attention`; cu_seqlens that do not begin at 0,
            that decrease, or that end elsewhere than the tokens do.
        TypeError: an argument of the wrong type.

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> x = np.ones((8, 2, 4), "float32")
        >>> fastconv.functional.attention_varlen(x, x, x, [0, 3, 8]).shape
        (8, 2, 4)
    """
    expect_bool(_NAME, "return_lse", return_lse)
    for name, each in (("query", query), ("key", key), ("value", value)):
        if not hasattr(each, "shape"):
            kind = type(each).__name__
            raise TypeError(f"{_NAME}: expected {name} to be a tensor or an array, got {kind}")
        expect(len(each.shape) == 3, _NAME, f"{name} of 3 dimensions", list(each.shape))
    expect(
        key.shape[0] == value.shape[0],
        _NAME,
        f"value of as many tokens as key, {key.shape[0]}",
        value.shape[0],
    )
    of_queries = _lengths("cu_seqlens_q", cu_seqlens_q, query.shape[0])
    given = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    of_keys = _lengths("cu_seqlens_k", given, key.shape[0])
    law = f"cu_seqlens_k of {len(of_queries)} sequences"
    expect(len(of_keys) == len(of_queries), _NAME, law, len(of_keys))
    is_torch = HAS_TORCH and isinstance(query, torch.Tensor)
    pieces = zip(
        _split(query, of_queries, is_torch),
        _split(key, of_keys, is_torch),
        _split(value, of_keys, is_torch),
        strict=True,
    )
    results = []
    for number, each in enumerate(pieces):
        slopes = alibi_slopes
        if slopes is not None and len(slopes.shape) == 2 and slopes.shape[0] != 1:
            law = f"alibi_slopes of [H] or [{len(of_queries)}, H]"
            expect(slopes.shape[0] == len(of_queries), _NAME, law, list(slopes.shape))
            slopes = slopes[number]
        q, k, v = (tokens.swapaxes(0, 1)[None] for tokens in each)
        results.append(
            scaled_dot_product_attention(
                q, k, v, None, dropout_p, is_causal, scale, True, window_size=window_size,
                softcap=softcap, alibi_slopes=slopes, return_lse=True,
            )
        )  # fmt: skip
    join = torch.cat if is_torch else np.concatenate
    output = join([output[0].swapaxes(0, 1) for output, _ in results], 0)
    return (output, join([lse[0] for _, lse in results], 1)) if return_lse else output


def _lengths(name: str, boundaries: Any, tokens: int) -> list[int]:
    """Of every sequence."""
    values = boundaries.tolist() if hasattr(boundaries, "tolist") else boundaries
    if not isinstance(values, Sequence) or isinstance(values, str):
        kind = type(boundaries).__name__
        raise TypeError(f"{_NAME}: expected {name} to be ints, got {kind}")
    ints = [integer(_NAME, name, value) for value in values]
    expect(len(ints) > 0 and ints[0] == 0, _NAME, f"{name} that begins with 0", ints[:1])
    lengths = [after - before for before, after in pairwise(ints)] or [0]
    expect(min(lengths) >= 0, _NAME, f"{name} that never decreases", ints)
    expect(ints[-1] == tokens, _NAME, f"{name} that ends with the tokens, {tokens}", ints[-1])
    return lengths


def _split(tokens: Any, lengths: list[int], is_torch: bool) -> Any:
    """Views, one per sequence."""
    if is_torch:
        return tokens.split(lengths, 0)
    return np.split(tokens, np.cumsum(lengths)[:-1])
