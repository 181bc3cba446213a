"""avg_pool2d and its gradient as Numba-CUDA kernels: for CUDA devices that the compiled part does
not serve. The formulas are those of ``avg_pool2d.py``.

Every function is ``<op>(queue, dtype, results, *arguments of the op)``: arrays lie on the device of
``queue``, ``results`` hold what is written, halves come as int16 (see ``_numba_cuda.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.reference._average_cuda import (
    INSIDE,
    WITH_PADDING,
    Axis,
    write_averages,
    write_shares,
)
from fastconv.reference._numba_cuda import Queue
from fastconv.reference._pool import pool_axes
from fastconv.reference._window import IntPair

Results = tuple[Any, ...]


def _axes(
    input_size: Sequence[int],
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    ceil_mode: bool,
    count_include_pad: bool,
) -> tuple[Axis, Axis]:
    kind = WITH_PADDING if count_include_pad else INSIDE
    rows, columns = (
        (axis.size, axis.count, axis.taps, axis.stride, axis.padding, kind)
        for axis in pool_axes(input_size, kernel_size, stride, padding, 1, ceil_mode)
    )
    return rows, columns


def avg_pool2d(
    queue: Queue,
    dtype: str,
    results: Results,
    input: Any,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> None:
    """Writes the mean of every window."""
    axes = _axes(input.shape, kernel_size, stride, padding, ceil_mode, count_include_pad)
    write_averages(queue, dtype, results[0], input, *axes, divisor_override or 0)


def avg_pool2d_backward(
    queue: Queue,
    dtype: str,
    results: Results,
    grad_output: Any,
    input_size: Sequence[int],
    channels_last: bool,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> None:
    """Writes what every element gets of the gradients of the windows that hold it."""
    axes = _axes(input_size, kernel_size, stride, padding, ceil_mode, count_include_pad)
    write_shares(queue, dtype, results[0], grad_output, *axes, divisor_override or 0)
