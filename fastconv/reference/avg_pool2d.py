"""The meaning of avg_pool2d: the mean of every window, and its gradient.

    output[n,c,p,q]     = sum_{r,s} input[n,c,h,w] / divisor[p,q]
    grad_input[n,c,h,w] = sum of grad_output[n,c,p,q] / divisor[p,q] over the windows that hold h, w

with h = p * stride_h - pad_h + r, w likewise, inside the input. The divisor is divisor_override if
given; else the number of the window's taps inside the input or, with count_include_pad, inside the
input and its padding. A last window of ceil_mode may reach over the padding: what lies there never
counts. Padding adds nothing, so that a NaN or infinity reaches only outputs whose window holds it.

N batch; C channels; H, W input extents; R, S window; P, Q output extents.
Arguments are taken to be legal: whoever calls has checked them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.reference._average import Spans, averages, averages_numba, shares, shares_numba
from fastconv.reference._pool import PoolAxis, pool_axes
from fastconv.reference._window import Array, IntPair


def _spans(axis: PoolAxis, count_include_pad: bool) -> Spans:
    """The windows of an axis, and how many taps each counts."""
    start = axis.positions(0)
    begin, end = np.maximum(start, 0), np.minimum(start + axis.taps, axis.size)
    reach = np.minimum(start + axis.taps, axis.size + axis.padding)
    return Spans(begin, end, reach - start if count_include_pad else end - begin)


def _windows(
    size: Sequence[int],
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    ceil_mode: bool,
    count_include_pad: bool,
) -> tuple[Spans, Spans]:
    rows, columns = pool_axes(size, kernel_size, stride, padding, 1, ceil_mode)
    return _spans(rows, count_include_pad), _spans(columns, count_include_pad)


def avg_pool2d(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """The mean of every window, summed in float64.

    Args:
        input: [N, C, H, W] or [C, H, W].
        kernel_size: (R, S), or one number for both.
        stride: of the window; ``kernel_size`` if None or empty.
        padding: (rows, columns) on both sides.
        ceil_mode: round the output's extents up, not down.
        count_include_pad: padding counts as elements that are zero.
        divisor_override: what every sum is divided by.

    Returns:
        [N, C, P, Q] or [C, P, Q].

    Example:
        >>> avg_pool2d(np.arange(16.0).reshape(1, 4, 4), 2).tolist()
        [[[2.5, 4.5], [10.5, 12.5]]]
    """
    rows, columns = _windows(
        input.shape, kernel_size, stride, padding, ceil_mode, count_include_pad
    )
    return averages(input, rows, columns, divisor_override).astype(input.dtype)


def avg_pool2d_backward(
    grad_output: Array,
    input_size: Sequence[int],
    channels_last: bool,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dtype: Any = None,
) -> Array:
    """Gives every element of a window its share of the gradient, summed in float64.

    Args:
        grad_output: [N, C, P, Q] or [C, P, Q].
        input_size: shape of the input, and of the result.
        channels_last: the layout of a torch result; means nothing here.
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as for
            :func:`avg_pool2d`.
        dtype: of the result; that of ``grad_output`` if None.
    """
    rows, columns = _windows(input_size, kernel_size, stride, padding, ceil_mode, count_include_pad)
    result = shares(grad_output, input_size, rows, columns, divisor_override)
    return result.astype(dtype or grad_output.dtype)


def avg_pool2d_numba(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """:func:`avg_pool2d` by compiled loops."""
    windows = _windows(input.shape, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return averages_numba(input, *windows, divisor_override)


def avg_pool2d_backward_numba(
    grad_output: Array,
    input_size: Sequence[int],
    channels_last: bool,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """:func:`avg_pool2d_backward` by compiled loops."""
    windows = _windows(input_size, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return shares_numba(grad_output, input_size, *windows, divisor_override)


@dataclass(frozen=True)
class AvgPool2dCase:
    """One problem; its name is the reason it exists."""

    name: str
    input: tuple[int, ...]
    kernel_size: IntPair
    stride: IntPair | None = None
    padding: IntPair = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that follow the tensor."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
        }


CASES: tuple[AvgPool2dCase, ...] = (
    AvgPool2dCase("halving drops an odd rest", (2, 20, 7, 37), 2),
    AvgPool2dCase("same size 3x3 counts its padding", (1, 5, 10, 11), 3, stride=1, padding=1),
    AvgPool2dCase("same size 3x3 does not count its padding", (2, 17, 6, 7), 3, stride=1,
                  padding=1, count_include_pad=False),
    AvgPool2dCase("overlap with a stride", (1, 4, 9, 38), 3, stride=2, padding=1),
    AvgPool2dCase("ceil_mode reaches over the padding, which counts", (1, 3, 8, 8), 3, stride=3,
                  padding=1, ceil_mode=True),
    AvgPool2dCase("ceil_mode drops a window that starts in the padding behind", (1, 2, 5, 5), 2,
                  stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    AvgPool2dCase("every argument different by axis", (2, 3, 14, 17), (3, 4), stride=(2, 3),
                  padding=(1, 2), ceil_mode=True, count_include_pad=False),
    AvgPool2dCase("negative divisor_override", (1, 3, 9, 7), 3, stride=2, padding=1,
                  count_include_pad=False, divisor_override=-5),
    AvgPool2dCase("large window made of smaller ones", (1, 3, 20, 23), 13, stride=1, padding=6),
    AvgPool2dCase("window as large as the input", (1, 12, 5, 7), (5, 7)),
    AvgPool2dCase("row window, stride leaves gaps", (1, 4, 5, 75), (1, 2), stride=(1, 5)),
    AvgPool2dCase("many planes of one element, channel tail past 128", (3, 133, 1, 1), 1),
    AvgPool2dCase("unbatched", (3, 8, 9), 2, padding=1),
    AvgPool2dCase("empty batch", (0, 3, 6, 6), 2),
)  # fmt: skip
