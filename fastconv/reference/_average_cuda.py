"""Averages over windows as Numba-CUDA kernels: what avg_pool2d and adaptive_avg_pool2d share.

An axis is (inputs, outputs, taps, stride, padding, kind): windows that slide and count what is
inside (kind 0) or their padding too (1), or that cover the inputs evenly (2).
"""

from __future__ import annotations

import math
from typing import Any

from fastconv.reference._numba_cuda import Queue, batched, per_dtype

INSIDE, WITH_PADDING, EVENLY = range(3)
Axis = tuple[int, int, int, int, int, int]
cuda: Any = None  # Numba's, from the first call on


def write_averages(
    queue: Queue, dtype: str, result: Any, input: Any, rows: Axis, columns: Axis, divisor: int
) -> None:
    """Writes the mean of every window; a ``divisor`` of 0 stands for what the window counts."""
    arguments = (batched(input), batched(result), rows, columns, float(divisor))
    queue.launch(_means(dtype), math.prod(result.shape), *arguments)


def write_shares(
    queue: Queue, dtype: str, result: Any, grad_output: Any, rows: Axis, columns: Axis, divisor: int
) -> None:
    """Writes what every element gets of the gradients of the windows that hold it."""
    arguments = (batched(grad_output), batched(result), rows, columns, float(divisor))
    queue.launch(_shares(dtype), math.prod(result.shape), *arguments)


def _begin(axis, o):  # type: ignore[no-untyped-def]
    inputs, outputs, taps, stride, padding, kind = axis
    if kind == 2:
        return o * inputs // outputs
    start = o * stride - padding
    return 0 if start < 0 else start


def _end(axis, o):  # type: ignore[no-untyped-def]
    inputs, outputs, taps, stride, padding, kind = axis
    if kind == 2:
        return ((o + 1) * inputs + outputs - 1) // outputs
    end = o * stride - padding + taps
    return inputs if end > inputs else end


def _count(axis, o):  # type: ignore[no-untyped-def]
    inputs, outputs, taps, stride, padding, kind = axis
    if kind == 2:
        return ((o + 1) * inputs + outputs - 1) // outputs - o * inputs // outputs
    start = o * stride - padding
    first, end, most = start, start + taps, inputs
    if kind == 1:
        most = inputs + padding
    elif start < 0:
        first = 0
    return (most if end > most else end) - first


@per_dtype
def _means(load, store):  # type: ignore[no-untyped-def]
    begin_of, end_of, count_of = (cuda.jit(device=True)(f) for f in (_begin, _end, _count))

    def kernel(image, output, rows, columns, divisor):  # type: ignore[no-untyped-def]
        N, C, P, Q = output.shape
        for element in range(cuda.grid(1), N * C * P * Q, cuda.gridsize(1)):
            q, p = element % Q, element // Q % P
            c, n = element // (Q * P) % C, element // (Q * P * C)
            total = 0.0
            for h in range(begin_of(rows, p), end_of(rows, p)):
                for w in range(begin_of(columns, q), end_of(columns, q)):
                    total += load(image[n, c, h, w])
            count = divisor
            if divisor == 0.0:
                count = float(count_of(rows, p) * count_of(columns, q))
            output[n, c, p, q] = store(total / count)

    return kernel


@per_dtype
def _shares(load, store):  # type: ignore[no-untyped-def]
    begin_of, end_of, count_of = (cuda.jit(device=True)(f) for f in (_begin, _end, _count))

    def kernel(grad_output, image, rows, columns, divisor):  # type: ignore[no-untyped-def]
        N, C, H, W = image.shape
        P, Q = grad_output.shape[2], grad_output.shape[3]
        for element in range(cuda.grid(1), N * C * H * W, cuda.gridsize(1)):
            w, h = element % W, element // W % H
            c, n = element // (W * H) % C, element // (W * H * C)
            total = 0.0
            for p in range(P):
                if begin_of(rows, p) > h:
                    break
                if end_of(rows, p) <= h:
                    continue
                for q in range(Q):
                    if begin_of(columns, q) > w:
                        break
                    if end_of(columns, q) <= w:
                        continue
                    count = divisor
                    if divisor == 0.0:
                        count = float(count_of(rows, p) * count_of(columns, q))
                    total += load(grad_output[n, c, p, q]) / count
            image[n, c, h, w] = store(total)

    return kernel
