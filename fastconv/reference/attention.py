"""The meaning of attention: softmax-weighted means of values, and their gradients.

    score[b,h,l,s]  = cap(scale * sum_d query[b,h,l,d] * key[b,g,s,d])
                      - alibi_slopes[b,h] * |s - l - (S - L)| + attn_mask[b,h,l,s]
    weight[b,h,l,s] = exp(score[b,h,l,s] - lse[b,h,l]),  lse[b,h,l] = log sum_s exp(score[b,h,l,s])
    output[b,h,l,e] = sum_s keep[b,h,l,s] / (1 - dropout_p) * weight[b,h,l,s] * value[b,g,s,e]

with g = h / (H/G), cap(x) = softcap * tanh(x / softcap) where softcap > 0. Key s takes part for
query l where the boolean mask says so, where s <= l if is_causal, and where s lies at most
window_left before and window_right behind l + S - L (each where it is >= 0). A query without a key
has output 0 and lse -inf. keep is 0 with probability dropout_p, by the hash of the seed and the
position below.

B batch; H heads of query, G of key and value; L queries; S keys; D, E features of keys and values.
Arguments are taken to be legal: whoever calls has checked them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.reference._numba import parallel, prange
from fastconv.reference._window import Array, widened


def attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    alibi_slopes: Array | None = None,
    dropout_seed: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    *,
    dtype: Any = None,
) -> tuple[Array, Array]:
    """The output and the logarithm of every softmax's denominator, in float64.

    Args:
        query: [B, H, L, D].
        key: [B, G, S, D], G divides H.
        value: [B, G, S, E].
        attn_mask: [B or 1, H or 1, L or 1, S or 1], uint8 (0: left out) or floating (added).
        alibi_slopes: [B or 1, H].
        dropout_seed: [1] int64; needed where ``dropout_p`` > 0.
        dropout_p: probability of a weight to be left out.
        is_causal: query l sees keys 0 to l.
        scale: of the products; 1 / sqrt(D) if None.
        window_left, window_right: how far a query sees; -1 without end.
        softcap: bound of the scaled products; 0 for none.
        dtype: of the output; that of ``query`` if None.

    Returns:
        [B, H, L, E], and the float64 lse [B, H, L].

    Example:
        >>> ones = np.ones((1, 1, 2, 3))
        >>> output, lse = attention(ones, ones, np.arange(6.0).reshape(1, 1, 2, 3), is_causal=True)
        >>> output.tolist()
        [[[[0.0, 1.0, 2.0], [1.5, 2.5, 3.5]]]]
    """
    rules = _Rules(dropout_p, is_causal, scale, window_left, window_right, softcap)
    scores, _ = _scores(query, key, attn_mask, alibi_slopes, rules)
    weights, lse = _softmax(scores)
    weights = weights * _kept(dropout_seed, dropout_p, weights.shape)
    output = weights @ _repeated(value, query.shape[1])
    return output.astype(dtype or query.dtype), lse


def attention_backward(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array,
    *rest: Any,
    dtype: Any = None,
) -> tuple[Array, Array, Array]:
    """The gradients by query, key and value; ``rest`` are the arguments of :func:`attention` from
    ``attn_mask`` on. ``output`` and ``lse`` are its results, and not needed here.
    """
    gradients = _gradients(grad_output, query, key, value, *rest)
    kind = dtype or query.dtype
    return gradients[0].astype(kind), gradients[1].astype(kind), gradients[2].astype(kind)


def attention_mask_grad(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array,
    *rest: Any,
    dtype: Any = None,
) -> Array:
    """The gradient by ``attn_mask``, of its shape and dtype."""
    *_, scores = _gradients(grad_output, query, key, value, *rest)
    mask: Array = rest[0]
    axes = tuple(axis for axis in range(4) if mask.shape[axis] == 1 and scores.shape[axis] != 1)
    result: Array = scores.sum(axes, keepdims=True).astype(dtype or mask.dtype)
    return result


@dataclass(frozen=True)
class _Rules:
    """The constants of a call."""

    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0

    def scale_of(self, D: int) -> float:
        return (1 / math.sqrt(D) if D else 0.0) if self.scale is None else self.scale

    def offsets(self, L: int, S: int) -> tuple[int, int]:
        """Query l sees keys from l + first to l + last."""
        first = -(2**62) if self.window_left < 0 else S - L - self.window_left
        last = 2**62 if self.window_right < 0 else S - L + self.window_right
        return first, min(last, 0) if self.is_causal else last


def _repeated(array: Array, heads: int) -> Array:
    return np.repeat(array.astype(np.float64), heads // array.shape[1], 1)


def _scores(
    query: Array, key: Array, mask: Array | None, slopes: Array | None, rules: _Rules
) -> tuple[Array, Array]:
    """The scores, and the derivative of the cap."""
    (_, H, L, D), S = query.shape, key.shape[2]
    products = query.astype(np.float64) @ _repeated(key, H).swapaxes(2, 3)
    scores = products * rules.scale_of(D)
    slope = np.ones(())
    if rules.softcap > 0:
        capped = np.tanh(scores / rules.softcap)
        scores, slope = capped * rules.softcap, 1 - capped**2
    distance = np.arange(S) - np.arange(L)[:, np.newaxis]
    if slopes is not None:
        scores = scores - slopes.astype(np.float64)[..., np.newaxis, np.newaxis] * np.abs(
            distance - (S - L)
        )
    if mask is not None and mask.dtype.kind == "f":
        scores = scores + mask.astype(np.float64)
    elif mask is not None:
        scores = np.where(mask != 0, scores, -np.inf)
    first, last = rules.offsets(L, S)
    return np.where((distance >= first) & (distance <= last), scores, -np.inf), slope


def _softmax(scores: Array) -> tuple[Array, Array]:
    best = scores.max(-1, keepdims=True, initial=-np.inf)
    exps = np.exp(scores - np.where(best == -np.inf, 0, best))
    sums = exps.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (best + np.log(sums))[..., 0]
    return exps / np.where(sums == 0, 1, sums), lse


def _gradients(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    alibi_slopes: Array | None = None,
    dropout_seed: Array | None = None,
    *rules: Any,
) -> tuple[Array, Array, Array, Array]:
    """Those by query, key, value and scores."""
    given = _Rules(*rules)
    (B, H, _, D), (_, G, S, _) = query.shape, key.shape
    scores, slope = _scores(query, key, attn_mask, alibi_slopes, given)
    weights, _ = _softmax(scores)
    kept = _kept(dropout_seed, given.dropout_p, weights.shape)
    grad = grad_output.astype(np.float64)
    by_value = (weights * kept).swapaxes(2, 3) @ grad
    by_weight = kept * (grad @ _repeated(value, H).swapaxes(2, 3))
    by_score = weights * (by_weight - (weights * by_weight).sum(-1, keepdims=True))
    by_product = by_score * slope * given.scale_of(D)
    by_query = by_product @ _repeated(key, H)
    by_key = by_product.swapaxes(2, 3) @ query.astype(np.float64)

    def grouped(array: Array) -> Array:
        result: Array = array.reshape(B, G, H // G, S, array.shape[-1]).sum(2)
        return result

    return by_query, grouped(by_key), grouped(by_value), by_score


def _kept(seed: Array | None, p: float, shape: tuple[int, ...]) -> Array:
    """What each weight is multiplied by: 0, or 1 / (1 - p)."""
    if seed is None or p == 0:
        return np.ones(())
    B, H, L, S = shape
    if p >= 1:
        return np.zeros(())
    with np.errstate(over="ignore"):
        rows = _mix64(np.uint64(int(seed[0]) % 2**64), np.arange(B * H * L, dtype=np.uint64))
        low, high = rows.astype(np.uint32), (rows >> np.uint64(32)).astype(np.uint32)
        x = np.arange(S, dtype=np.uint32) * np.uint32(0x9E3779B1) ^ low[:, np.newaxis]
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B) + high[:, np.newaxis]
        x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
    result: Array = (x >= dropout_threshold(p)).reshape(shape) / (1 - p)
    return result


def dropout_threshold(p: float) -> int:
    """Hashes of 32 bits below it are dropped."""
    return int(p * 2.0**32)


def _mix64(seed: Any, number: Any) -> Any:
    """splitmix64: https://prng.di.unimi.it/splitmix64.c"""
    x = seed + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# ---- The Numba fallback: a query at a time, in float64


def attention_numba(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    alibi_slopes: Array | None = None,
    dropout_seed: Array | None = None,
    dropout_p: float = 0.0,
    *rules: Any,
) -> tuple[Array, Array]:
    """:func:`attention` by compiled loops."""
    given = _Rules(dropout_p, *rules)
    B, H, L, _ = query.shape
    output = np.zeros((B, H, L, value.shape[3]))
    lse = np.full((B, H, L), -np.inf)
    _forward(
        widened(query),
        widened(key),
        widened(value),
        *_addends(query, key, attn_mask, alibi_slopes),
        _rows_kept(dropout_seed, dropout_p, (B, H, L, key.shape[2])),
        *_numbers(given, query, key),
        output,
        lse,
    )
    return output.astype(query.dtype), lse


def attention_backward_numba(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array,
    *rest: Any,
) -> tuple[Array, Array, Array]:
    """:func:`attention_backward` by compiled loops."""
    by_query, by_key, by_value, _ = _loops(grad_output, query, key, value, False, *rest)
    kind = query.dtype
    return by_query.astype(kind), by_key.astype(kind), by_value.astype(kind)


def attention_mask_grad_numba(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array,
    *rest: Any,
) -> Array:
    """:func:`attention_mask_grad` by compiled loops."""
    *_, by_mask = _loops(grad_output, query, key, value, True, *rest)
    mask: Array = rest[0]
    axes = tuple(axis for axis in range(4) if mask.shape[axis] == 1)
    result: Array = by_mask.sum(axes, keepdims=True).astype(mask.dtype)
    return result


def _loops(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    with_mask: bool,
    attn_mask: Array | None = None,
    alibi_slopes: Array | None = None,
    dropout_seed: Array | None = None,
    dropout_p: float = 0.0,
    *rules: Any,
) -> tuple[Array, Array, Array, Array]:
    given = _Rules(dropout_p, *rules)
    (B, H, L, _), S = query.shape, key.shape[2]
    by_query = np.zeros(query.shape)
    by_key, by_value = np.zeros(key.shape), np.zeros(value.shape)
    by_mask = np.zeros((B, H, L, S) if with_mask else (1, 1, 1, 1))
    _backward(
        widened(grad_output),
        widened(query),
        widened(key),
        widened(value),
        *_addends(query, key, attn_mask, alibi_slopes),
        _rows_kept(dropout_seed, dropout_p, (B, H, L, S)),
        *_numbers(given, query, key),
        by_query,
        by_key,
        by_value,
        by_mask,
        with_mask,
    )
    return by_query, by_key, by_value, by_mask


def _addends(
    query: Array, key: Array, mask: Array | None, slopes: Array | None
) -> tuple[Array, Array]:
    """What is added to every score, and the slopes: views, of the whole shape."""
    (B, H, L, _), S = query.shape, key.shape[2]
    added = np.zeros((1, 1, 1, 1))
    if mask is not None:
        added = widened(mask) if mask.dtype.kind == "f" else np.where(mask != 0, 0.0, -np.inf)
    slope = np.zeros((1, 1)) if slopes is None else widened(slopes)
    return np.broadcast_to(added, (B, H, L, S)), np.broadcast_to(slope, (B, H))


def _rows_kept(seed: Array | None, p: float, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(_kept(seed, p, shape), shape)


def _numbers(rules: _Rules, query: Array, key: Array) -> tuple[Any, ...]:
    L, D = query.shape[2:]
    return float(rules.scale_of(D)), float(rules.softcap), *rules.offsets(L, key.shape[2])


@parallel
def _forward(query, key, value, added, slopes, kept, scale, softcap, first, last, output, lse):  # type: ignore[no-untyped-def]
    B, H, L, D = query.shape
    _, G, S, E = value.shape
    for row in prange(B * H * L):
        b, h, q = row // (H * L), row // L % H, row % L
        g = h // (H // G)
        begin, end = max(0, q + first), min(S, q + last + 1)
        if begin >= end:
            continue
        scores = np.empty(end - begin)
        best = -np.inf
        for s in range(begin, end):
            x = 0.0
            for d in range(D):
                x += query[b, h, q, d] * key[b, g, s, d]
            x *= scale
            if softcap > 0:
                x = softcap * np.tanh(x / softcap)
            x += added[b, h, q, s] - slopes[b, h] * abs(s - q - (S - L))
            scores[s - begin] = x
            best = max(best, x)
        if best == -np.inf:
            best = 0.0
        total = 0.0
        for s in range(begin, end):
            w = np.exp(scores[s - begin] - best)
            total += w
            w *= kept[b, h, q, s]
            for e in range(E):
                output[b, h, q, e] += w * value[b, g, s, e]
        if total != 0:
            lse[b, h, q] = best + np.log(total)
            for e in range(E):
                output[b, h, q, e] /= total


@parallel
def _backward(  # type: ignore[no-untyped-def]
    grad, query, key, value, added, slopes, kept, scale, softcap, first, last,
    by_query, by_key, by_value, by_mask, with_mask,
):  # fmt: skip
    B, H, L, D = query.shape
    _, G, S, E = value.shape
    for bg in prange(B * G):
        b, g = bg // G, bg % G
        weights, slope, by_weight = np.empty(S), np.ones(S), np.empty(S)
        for row in range(H // G * L):
            h, q = g * (H // G) + row // L, row % L
            begin, end = max(0, q + first), min(S, q + last + 1)
            best, total, sum_of_products = -np.inf, 0.0, 0.0
            for s in range(begin, end):
                x = 0.0
                for d in range(D):
                    x += query[b, h, q, d] * key[b, g, s, d]
                x *= scale
                if softcap > 0:
                    capped = np.tanh(x / softcap)
                    x, slope[s] = softcap * capped, 1 - capped * capped
                weights[s] = x + added[b, h, q, s] - slopes[b, h] * abs(s - q - (S - L))
                best = max(best, weights[s])
            if best == -np.inf:
                best = 0.0
            for s in range(begin, end):
                weights[s] = np.exp(weights[s] - best)
                total += weights[s]
            if total == 0:
                total = 1.0
            for s in range(begin, end):
                weights[s] /= total
                w = weights[s] * kept[b, h, q, s]
                x = 0.0
                for e in range(E):
                    x += grad[b, h, q, e] * value[b, g, s, e]
                    by_value[b, g, s, e] += w * grad[b, h, q, e]
                by_weight[s] = x * kept[b, h, q, s]
                sum_of_products += weights[s] * by_weight[s]
            for s in range(begin, end):
                x = weights[s] * (by_weight[s] - sum_of_products)
                if with_mask:
                    by_mask[b, h, q, s] = x
                x *= slope[s] * scale
                for d in range(D):
                    by_query[b, h, q, d] += x * key[b, g, s, d]
                    by_key[b, g, s, d] += x * query[b, h, q, d]
