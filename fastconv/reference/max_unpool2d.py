"""The meaning of max_unpool2d: elements back to the places that indices name, zeros elsewhere.

    output[n,c,h,w] = input[n,c,p,q] of the last p, q with indices[n,c,p,q] == h * W + w, or 0
    grad_input[n,c,p,q] = grad_output[n,c,h,w] with h * W + w = indices[n,c,p,q]

An index outside [0, H * W) is a mistake of the caller's. Of equal indices the last in row-major
order counts, and every one of them gets the gradient (as in torch).

N batch; C channels; P, Q extents of the input; H, W of the output.
Other arguments are taken to be legal: whoever calls has checked them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.reference._numba import parallel, prange
from fastconv.reference._window import Array, IntPair


def _checked(op: str, indices: Array, plane: int) -> Array:
    """The indices of every plane, [planes, P * Q]; raises RuntimeError for one outside."""
    wrong = indices[(indices < 0) | (indices >= plane)]
    if wrong.size:
        raise RuntimeError(f"{op}: expected indices in [0, {plane}), got {wrong[0]}")
    return indices.reshape(-1, int(np.prod(indices.shape[-2:])))


def max_unpool2d(input: Array, indices: Array, output_size: Sequence[int]) -> Array:
    """Puts every element where its index says.

    Args:
        input: [N, C, P, Q] or [C, P, Q].
        indices: int64, of the same shape, each ``h * W + w``.
        output_size: (H, W).

    Returns:
        [N, C, H, W] or [C, H, W].

    Raises:
        RuntimeError: an index outside of the plane.

    Example:
        >>> max_unpool2d(np.array([[[5.0]]]), np.array([[[2]]]), (2, 2)).tolist()
        [[[0.0, 0.0], [5.0, 0.0]]]
    """
    height, width = output_size
    result = np.zeros((*input.shape[:-2], height, width), input.dtype)
    if result.size == 0:
        return result
    places = _checked("max_unpool2d", indices, height * width)
    planes, values = result.reshape(len(places), -1), input.reshape(places.shape)
    for plane, at, elements in zip(planes, places, values, strict=True):
        for index, element in zip(at, elements, strict=True):
            plane[index] = element
    return result


def max_unpool2d_backward(grad_output: Array, indices: Array) -> Array:
    """Takes every element's gradient from where it was put.

    Args:
        grad_output: [N, C, H, W] or [C, H, W].
        indices: [N, C, P, Q] or [C, P, Q].

    Returns:
        The gradient of the input, of the shape of ``indices``.
    """
    if indices.size == 0:
        return np.zeros(indices.shape, grad_output.dtype)
    places = _checked("max_unpool2d_backward", indices, int(np.prod(grad_output.shape[-2:])))
    planes = grad_output.reshape(len(places), -1)
    return np.take_along_axis(planes, places, axis=1).reshape(indices.shape)


# ---- The Numba fallback: the same as loops, parallel over planes


def max_unpool2d_numba(input: Array, indices: Array, output_size: Sequence[int]) -> Array:
    """:func:`max_unpool2d` by compiled loops."""
    height, width = output_size
    result = np.zeros((*input.shape[:-2], height, width), input.dtype)
    if result.size == 0:
        return result
    places = _checked("max_unpool2d", indices, height * width)
    moved = _bits(np.ascontiguousarray(input)).reshape(places.shape)
    _scatter(moved, places, _bits(result).reshape(len(places), -1))
    return result


def max_unpool2d_backward_numba(grad_output: Array, indices: Array) -> Array:
    """:func:`max_unpool2d_backward` by compiled loops."""
    result = np.zeros(indices.shape, grad_output.dtype)
    if indices.size == 0:
        return result
    places = _checked("max_unpool2d_backward", indices, int(np.prod(grad_output.shape[-2:])))
    moved = _bits(np.ascontiguousarray(grad_output)).reshape(len(places), -1)
    _gather(moved, places, _bits(result).reshape(places.shape))
    return result


def _bits(array: Array) -> Array:
    """What Numba can move: elements as integers of their size."""
    return array.view(f"u{array.dtype.itemsize}")


@parallel
def _scatter(values, places, planes):  # type: ignore[no-untyped-def]
    for plane in prange(places.shape[0]):
        for i in range(places.shape[1]):
            planes[plane, places[plane, i]] = values[plane, i]


@parallel
def _gather(planes, places, values):  # type: ignore[no-untyped-def]
    for plane in prange(places.shape[0]):
        for i in range(places.shape[1]):
            values[plane, i] = planes[plane, places[plane, i]]


@dataclass(frozen=True)
class MaxUnpool2dCase:
    """One problem; its name is the reason it exists. Indices are those of a shuffled plane."""

    name: str
    input: tuple[int, ...]
    output_size: tuple[int, int]
    kernel_size: IntPair = 2
    stride: IntPair | None = None
    padding: IntPair = 0

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of torch.nn.functional's function that follow the tensors."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "output_size": self.output_size,
        }


EXAMPLES: tuple[MaxUnpool2dCase, ...] = (
    MaxUnpool2dCase("one element", (1, 1, 1, 1), (1, 1), 1),
    MaxUnpool2dCase("doubling", (2, 16, 5, 6), (10, 12)),
    MaxUnpool2dCase("doubling with an odd rest", (2, 3, 5, 6), (11, 13)),
    MaxUnpool2dCase("one row and column less", (2, 3, 5, 6), (9, 11)),
    MaxUnpool2dCase("decoder of a segmentation network", (1, 20, 7, 7), (14, 14), 3, 2, 1),
    MaxUnpool2dCase("every argument different by axis", (2, 5, 5, 6), (12, 10), (3, 2), (2, 2),
                    (0, 1)),
    MaxUnpool2dCase("as large as before", (2, 3, 5, 7), (5, 7), 1),
    MaxUnpool2dCase("one channel", (3, 1, 5, 5), (10, 10)),
    MaxUnpool2dCase("channel tail past 16", (1, 19, 2, 3), (4, 6)),
    MaxUnpool2dCase("many planes of one element", (9, 33, 1, 1), (2, 2)),
    MaxUnpool2dCase("unbatched", (3, 5, 6), (10, 12)),
    MaxUnpool2dCase("empty batch", (0, 3, 3, 3), (6, 6)),
)  # fmt: skip
