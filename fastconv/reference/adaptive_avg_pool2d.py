"""The meaning of adaptive_avg_pool2d: the means of P * Q windows that cover the input evenly.

    output[n,c,p,q]     = sum_{h,w} input[n,c,h,w] / (rows * columns of the window)
    grad_input[n,c,h,w] = sum of grad_output[n,c,p,q] / (rows * columns) over the windows that hold
                          h, w

Window p holds the rows h in [floor(p * H / P), ceil((p + 1) * H / P)), columns likewise: neighbours
share a row where P does not divide H.

N batch; C channels; H, W input extents; P, Q output extents.
Arguments are taken to be legal: whoever calls has checked them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.reference._average import Spans, averages, averages_numba, shares, shares_numba
from fastconv.reference._pool import AdaptivePool2dCase, adaptive_spans
from fastconv.reference._window import Array


def _windows(input_size: Sequence[int], output_size: Sequence[int]) -> tuple[Spans, Spans]:
    each = []
    for inputs, outputs in zip(input_size[-2:], output_size[-2:], strict=True):
        begin, end = adaptive_spans(inputs, outputs)
        each.append(Spans(begin, end, end - begin))
    rows, columns = each
    return rows, columns


def adaptive_avg_pool2d(input: Array, output_size: Sequence[int]) -> Array:
    """The mean of every window, summed in float64.

    Args:
        input: [N, C, H, W] or [C, H, W].
        output_size: (P, Q).

    Returns:
        [N, C, P, Q] or [C, P, Q].

    Example:
        >>> import numpy as np
        >>> adaptive_avg_pool2d(np.arange(9.0).reshape(1, 3, 3), (1, 2)).tolist()
        [[[3.5, 4.5]]]
    """
    return averages(input, *_windows(input.shape, output_size)).astype(input.dtype)


def adaptive_avg_pool2d_backward(
    grad_output: Array, input_size: Sequence[int], channels_last: bool = False, *, dtype: Any = None
) -> Array:
    """Gives every element of a window its share of the gradient, summed in float64.

    Args:
        grad_output: [N, C, P, Q] or [C, P, Q].
        input_size: shape of the input, and of the result.
        channels_last: the layout of a torch result; means nothing here.
        dtype: of the result; that of ``grad_output`` if None.
    """
    windows = _windows(input_size, grad_output.shape)
    return shares(grad_output, input_size, *windows).astype(dtype or grad_output.dtype)


def adaptive_avg_pool2d_numba(input: Array, output_size: Sequence[int]) -> Array:
    """:func:`adaptive_avg_pool2d` by compiled loops."""
    return averages_numba(input, *_windows(input.shape, output_size))


def adaptive_avg_pool2d_backward_numba(
    grad_output: Array, input_size: Sequence[int], channels_last: bool
) -> Array:
    """:func:`adaptive_avg_pool2d_backward` by compiled loops."""
    return shares_numba(grad_output, input_size, *_windows(input_size, grad_output.shape))


CASES: tuple[AdaptivePool2dCase, ...] = (
    AdaptivePool2dCase("global mean", (2, 20, 7, 9), (1, 1)),
    AdaptivePool2dCase("global mean of planes past one register", (3, 133, 5, 29), (1, 1)),
    AdaptivePool2dCase("equal windows", (1, 5, 12, 36), (3, 6)),
    AdaptivePool2dCase("windows that share rows and columns", (2, 4, 13, 13), (6, 5)),
    AdaptivePool2dCase("wide, windows of different sizes", (1, 2, 5, 75), (2, 31)),
    AdaptivePool2dCase("more windows than elements", (1, 3, 5, 4), (7, 12)),
    AdaptivePool2dCase("one axis stays as it is", (1, 18, 9, 8), (None, 3)),
    AdaptivePool2dCase("unbatched", (3, 8, 9), (2, 2)),
    AdaptivePool2dCase("no windows", (1, 3, 5, 4), (0, 3)),
    AdaptivePool2dCase("empty batch", (0, 3, 6, 6), (2, 3)),
)  # fmt: skip
