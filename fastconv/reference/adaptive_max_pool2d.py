"""The meaning of adaptive_max_pool2d: the largest elements of P * Q windows that cover the input
evenly.

    output[n,c,p,q]  = max_{h,w} input[n,c,h,w] over the window of p, q
    indices[n,c,p,q] = h * W + w of the element taken

Window p holds the rows h in [floor(p * H / P), ceil((p + 1) * H / P)), columns likewise: neighbours
share a row where P does not divide H. Among equal elements the first in row-major order is taken; a
NaN is larger than everything, and of several NaNs the last is taken (as torch does). The gradient
is that of max_pool2d.

N batch; C channels; H, W input extents; P, Q output extents.
Arguments are taken to be legal: whoever calls has checked them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastconv.reference._numba import parallel, prange
from fastconv.reference._pool import AdaptivePool2dCase, adaptive_spans
from fastconv.reference._window import Array, batched, widened


def adaptive_max_pool2d_with_indices(
    input: Array, output_size: Sequence[int]
) -> tuple[Array, Array]:
    """The largest element of every window, and where it was.

    Args:
        input: [N, C, H, W] or [C, H, W].
        output_size: (P, Q).

    Returns:
        The output and the int64 indices, both [N, C, P, Q] or [C, P, Q].

    Example:
        >>> image = np.arange(9.0).reshape(1, 3, 3)
        >>> values, indices = adaptive_max_pool2d_with_indices(image, (1, 2))
        >>> values.tolist(), indices.tolist()
        ([[[7.0, 8.0]]], [[[7, 8]]])
    """
    height, width = input.shape[-2:]
    rows, columns = (
        adaptive_spans(*each) for each in zip((height, width), output_size, strict=True)
    )
    shape = (*input.shape[:-2], *output_size)
    output, indices = np.empty(shape, input.dtype), np.empty(shape, np.int64)
    for p, q in np.ndindex(*output_size):
        window = input[..., rows[0][p] : rows[1][p], columns[0][q] : columns[1][q]]
        flat = window.reshape(*window.shape[:-2], int(np.prod(window.shape[-2:])))
        is_nan = np.isnan(flat)
        last_nan = flat.shape[-1] - 1 - is_nan[..., ::-1].argmax(-1)
        place = np.where(is_nan.any(-1), last_nan, np.where(is_nan, -np.inf, flat).argmax(-1))
        output[..., p, q] = np.take_along_axis(flat, place[..., np.newaxis], -1)[..., 0]
        r, s = place // window.shape[-1], place % window.shape[-1]
        indices[..., p, q] = (rows[0][p] + r) * width + columns[0][q] + s
    return output, indices


def adaptive_max_pool2d(input: Array, output_size: Sequence[int]) -> Array:
    """The first of what :func:`adaptive_max_pool2d_with_indices` returns."""
    return adaptive_max_pool2d_with_indices(input, output_size)[0]


# ---- The Numba fallback: the same as loops, parallel over planes


def adaptive_max_pool2d_with_indices_numba(
    input: Array, output_size: Sequence[int]
) -> tuple[Array, Array]:
    """:func:`adaptive_max_pool2d_with_indices` by compiled loops."""
    image = widened(batched(input))
    shape = (*image.shape[:2], *output_size)
    output, indices = np.empty(shape, image.dtype), np.empty(shape, np.int64)
    spans = (adaptive_spans(*each) for each in zip(image.shape[2:], output_size, strict=True))
    _forward(image, output, indices, *spans)
    result = output.astype(input.dtype, copy=False)
    return (result[0], indices[0]) if input.ndim == 3 else (result, indices)


def adaptive_max_pool2d_numba(input: Array, output_size: Sequence[int]) -> Array:
    """:func:`adaptive_max_pool2d` by compiled loops."""
    return adaptive_max_pool2d_with_indices_numba(input, output_size)[0]


@parallel
def _forward(image, output, indices, rows, columns):  # type: ignore[no-untyped-def]
    N, C, P, Q = output.shape
    W = image.shape[3]
    for nc in prange(N * C):
        n, c = nc // C, nc % C
        for p in range(P):
            for q in range(Q):
                best_h, best_w = rows[0][p], columns[0][q]
                best = image[n, c, best_h, best_w]
                for h in range(rows[0][p], rows[1][p]):
                    for w in range(columns[0][q], columns[1][q]):
                        value = image[n, c, h, w]
                        if value > best or np.isnan(value):
                            best, best_h, best_w = value, h, w
                output[n, c, p, q] = best
                indices[n, c, p, q] = best_h * W + best_w


CASES: tuple[AdaptivePool2dCase, ...] = (
    AdaptivePool2dCase("global maximum", (2, 20, 7, 9), (1, 1)),
    AdaptivePool2dCase("global maximum of planes past four registers", (3, 5, 29, 33), (1, 1)),
    AdaptivePool2dCase("equal windows", (1, 5, 12, 36), (3, 6)),
    AdaptivePool2dCase("windows that share rows and columns", (2, 20, 13, 13), (6, 5)),
    AdaptivePool2dCase("large windows of different sizes", (1, 3, 25, 23), (2, 3)),
    AdaptivePool2dCase("wide, windows of different sizes", (1, 2, 5, 75), (2, 31)),
    AdaptivePool2dCase("more windows than elements", (1, 3, 5, 4), (7, 12)),
    AdaptivePool2dCase("one axis stays as it is", (1, 18, 9, 8), (None, 3)),
    AdaptivePool2dCase("unbatched", (3, 8, 9), (2, 2)),
    AdaptivePool2dCase("no windows", (1, 3, 5, 4), (0, 3)),
    AdaptivePool2dCase("empty batch", (0, 3, 6, 6), (2, 3)),
)  # fmt: skip
