"""conv_transpose2d as a Numba-CUDA kernel: conv2d's gradient by the input, with a bias. For CUDA
devices that the compiled part does not serve; see ``conv2d_cuda.py``.
"""

from __future__ import annotations

from typing import Any

from fastconv.reference._numba_cuda import Queue, batched
from fastconv.reference._window import IntPair, pair
from fastconv.reference.conv2d_cuda import Results, add_windows


def conv_transpose2d(
    queue: Queue,
    dtype: str,
    results: Results,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
) -> None:
    """Writes the transposed convolution of ``input`` and ``weight``."""
    geometry = (*pair(stride), *pair(padding), *pair(dilation), int(groups))
    add_windows(queue, dtype, batched(results[0]), batched(input), weight, bias, geometry)
