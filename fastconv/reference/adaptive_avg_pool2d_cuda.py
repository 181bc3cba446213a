"""adaptive_avg_pool2d and its gradient as Numba-CUDA kernels: for CUDA devices that the compiled
part does not serve. The formulas are those of ``adaptive_avg_pool2d.py``.

Every function is ``<op>(queue, dtype, results, *arguments of the op)``: arrays lie on the device of
``queue``, ``results`` hold what is written, halves come as int16 (see ``_numba_cuda.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.reference._average_cuda import EVENLY, Axis, write_averages, write_shares
from fastconv.reference._numba_cuda import Queue

Results = tuple[Any, ...]


def _axes(input_size: Sequence[int], output_size: Sequence[int]) -> tuple[Axis, Axis]:
    each = zip(input_size[-2:], output_size[-2:], strict=True)
    rows, columns = ((inputs, outputs, 0, 0, 0, EVENLY) for inputs, outputs in each)
    return rows, columns


def adaptive_avg_pool2d(
    queue: Queue, dtype: str, results: Results, input: Any, output_size: Sequence[int]
) -> None:
    """Writes the mean of every window."""
    write_averages(queue, dtype, results[0], input, *_axes(input.shape, output_size), 0)


def adaptive_avg_pool2d_backward(
    queue: Queue,
    dtype: str,
    results: Results,
    grad_output: Any,
    input_size: Sequence[int],
    channels_last: bool,
) -> None:
    """Writes what every element gets of the gradients of the windows that hold it."""
    axes = _axes(input_size, grad_output.shape)
    write_shares(queue, dtype, results[0], grad_output, *axes, 0)
