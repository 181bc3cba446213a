"""Sliding-window geometry, shared by the references of convolution and pooling.

The window of output row ``p`` covers the input rows ``h = p * stride - before + r * dilation``,
``r`` in ``[0, taps)``; columns likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
IntPair = int | Sequence[int]


def pair(value: IntPair) -> tuple[int, int]:
    """``2`` and ``[2]`` mean ``(2, 2)``."""
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)


def padding_sides(padding: IntPair) -> tuple[tuple[int, int], tuple[int, int]]:
    """``(h, w)`` or ``(top, bottom, left, right)`` as ``((top, bottom), (left, right))``."""
    if not isinstance(padding, int) and len(padding) == 4:
        top, bottom, left, right = (int(side) for side in padding)
        return (top, bottom), (left, right)
    h, w = pair(padding)
    return (h, h), (w, w)


def taps_of(first: int, count: int, stride: int) -> slice:
    """What one tap of the window meets, over all ``count`` outputs, in the padded input."""
    return slice(first, first + (count - 1) * stride + 1 if count else first, stride)


def batched(array: Array) -> Array:
    """[C, H, W] as [1, C, H, W]."""
    return array[np.newaxis] if array.ndim == 3 else array


def widened(array: Array) -> Array:
    """What Numba can compile: float16 and bfloat16 as float32."""
    return (
        array.astype(np.float32) if array.dtype.itemsize == 2 and not is_integer(array) else array
    )


def is_integer(array: Array) -> bool:
    """Whether the elements are integers (bfloat16 of ml_dtypes has kind 'V')."""
    return array.dtype.kind in "iub"
