"""Averages over windows that are given by their first and last rows and columns: what avg_pool2d
and adaptive_avg_pool2d share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastconv.reference._numba import parallel, prange
from fastconv.reference._window import Array, batched, widened


class Spans(NamedTuple):
    """Window o of an axis holds [begin[o], end[o]) and counts counts[o] elements."""

    begin: Array
    end: Array
    counts: Array


def averages(input: Array, rows: Spans, columns: Spans, divisor: int | None = None) -> Array:
    """The sum of every window over its divisor: ``divisor``, or what it counts."""
    output = np.empty((*input.shape[:-2], len(rows.begin), len(columns.begin)))
    for p, q in np.ndindex(output.shape[-2:]):
        window = input[..., rows.begin[p] : rows.end[p], columns.begin[q] : columns.end[q]]
        total = window.astype(np.float64).sum((-2, -1))
        output[..., p, q] = total / (divisor or rows.counts[p] * columns.counts[q])
    return output


def shares(
    grad_output: Array,
    input_size: Sequence[int],
    rows: Spans,
    columns: Spans,
    divisor: int | None = None,
) -> Array:
    """Gives every element of a window its share of the window's gradient."""
    result = np.zeros(tuple(input_size))
    for p, q in np.ndindex(grad_output.shape[-2:]):
        window = result[..., rows.begin[p] : rows.end[p], columns.begin[q] : columns.end[q]]
        share = grad_output[..., p, q, np.newaxis, np.newaxis].astype(np.float64)
        window += share / (divisor or rows.counts[p] * columns.counts[q])
    return result


# ---- The Numba fallback: the same as loops, parallel over planes


def averages_numba(input: Array, rows: Spans, columns: Spans, divisor: int | None = None) -> Array:
    """:func:`averages` by compiled loops, in the dtype of ``input``."""
    image = widened(batched(input))
    output = np.empty((*image.shape[:2], len(rows.begin), len(columns.begin)), image.dtype)
    _forward(image, output, rows, columns, float(divisor or 0))
    result = output.astype(input.dtype, copy=False)
    return result[0] if input.ndim == 3 else result


def shares_numba(
    grad_output: Array,
    input_size: Sequence[int],
    rows: Spans,
    columns: Spans,
    divisor: int | None = None,
) -> Array:
    """:func:`shares` by compiled loops, in the dtype of ``grad_output``."""
    *_, height, width = input_size
    grad = widened(batched(grad_output))
    result = np.zeros((*grad.shape[:2], height, width))
    _backward(grad, result, rows, columns, float(divisor or 0))
    return result.reshape(tuple(input_size)).astype(grad_output.dtype)


@parallel
def _forward(image, output, rows, columns, divisor):  # type: ignore[no-untyped-def]
    N, C, P, Q = output.shape
    for nc in prange(N * C):
        n, c = nc // C, nc % C
        for p in range(P):
            for q in range(Q):
                total = 0.0
                for h in range(rows.begin[p], rows.end[p]):
                    for w in range(columns.begin[q], columns.end[q]):
                        total += image[n, c, h, w]
                count = rows.counts[p] * columns.counts[q]
                output[n, c, p, q] = total / (divisor if divisor != 0.0 else count)


@parallel
def _backward(grad_output, result, rows, columns, divisor):  # type: ignore[no-untyped-def]
    N, C, P, Q = grad_output.shape
    for nc in prange(N * C):
        n, c = nc // C, nc % C
        for p in range(P):
            for q in range(Q):
                count = rows.counts[p] * columns.counts[q]
                share = grad_output[n, c, p, q] / (divisor if divisor != 0.0 else count)
                for h in range(rows.begin[p], rows.end[p]):
                    for w in range(columns.begin[q], columns.end[q]):
                        result[n, c, h, w] += share
