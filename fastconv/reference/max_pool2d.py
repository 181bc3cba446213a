"""The meaning of max_pool2d: the largest element of every window, and its gradient.

    output[n,c,p,q]  = max_{r,s} input[n,c,h,w]      h = p * stride_h - pad_h + r * dilation_h, w
    likewise indices[n,c,p,q] = h * W + w of the element taken, taps[n,c,p,q] = r * S + s of it
    grad_input[n,c,h,w] = sum of grad_output[n,c,p,q] over all p, q that took h, w

Padding is never taken. Among equal elements the first in row-major order is taken; a NaN is larger
than everything, and of several NaNs the last is taken (as torch does). A window of -inf alone gives
the index of its first element inside. A window that lies in the padding altogether gives the type's
lowest value, no tap (255), and the index that its first row and column not before the input would
have: it may be >= H * W, and the gradient leaves it out.

N batch; C channels; H, W input extents; R, S window; P, Q output extents.
Arguments are taken to be legal: whoever calls has checked them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.reference._numba import parallel, prange
from fastconv.reference._pool import PoolAxis, pool_axes
from fastconv.reference._window import Array, IntPair, batched, pair, widened


def _lowest(dtype: Any) -> Any:
    return np.iinfo(dtype).min if np.dtype(dtype).kind in "iu" else -np.inf


MOST_TAPS = 255  # that a byte tells apart, and none


def has_taps(kernel_size: IntPair) -> bool:
    """Whether a byte tells the elements of the window apart."""
    rows, columns = pair(kernel_size)
    return rows * columns <= MOST_TAPS


def _pool(input: Array, rows: PoolAxis, columns: PoolAxis) -> tuple[Array, Array, Array]:
    """The largest elements, their indices, and their taps."""
    shape = (*input.shape[:-2], rows.count, columns.count)
    best = np.full(shape, _lowest(input.dtype), input.dtype)
    indices = np.broadcast_to(rows.first[:, np.newaxis] * columns.size + columns.first, shape)
    taps = np.full(shape, -1)
    for r, s in np.ndindex(rows.taps, columns.taps):
        h, w = rows.positions(r)[:, np.newaxis], columns.positions(s)
        inside = (h >= 0) & (h < rows.size) & (w >= 0) & (w < columns.size)
        values = input[..., h.clip(0, rows.size - 1), w.clip(0, columns.size - 1)]
        taken = inside & ((values > best) | np.isnan(values) | (taps < 0))
        best = np.where(taken, values, best)
        indices = np.where(taken, h * columns.size + w, indices)
        taps = np.where(taken, r * columns.taps + s, taps)
    return best, np.array(indices, np.int64), taps


def max_pool2d_with_indices(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """The largest element of every window, and where it was.

    Args:
        input: [N, C, H, W] or [C, H, W].
        kernel_size: (R, S), or one number for both.
        stride: of the window; ``kernel_size`` if None or empty.
        padding: (rows, columns) on both sides.
        dilation: distance of the window's taps.
        ceil_mode: round the output's extents up, not down.

    Returns:
        The output and the int64 indices, both [N, C, P, Q] or [C, P, Q].

    Example:
        >>> values, indices = max_pool2d_with_indices(np.arange(16.0).reshape(1, 4, 4), 2)
        >>> values.tolist(), indices.tolist()
        ([[[5.0, 7.0], [13.0, 15.0]]], [[[5, 7], [13, 15]]])
    """
    axes = pool_axes(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    best, indices, _ = _pool(input, *axes)
    return best, indices


def max_pool2d_with_taps(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """The largest element of every window, and its number in the window.

    Args:
        input, kernel_size, stride, padding, dilation, ceil_mode: as for
            :func:`max_pool2d_with_indices`.

    Returns:
        The output and the uint8 taps ``r * S + s``, 255 for none; int64 indices in their place if
        the window has more than 255 elements.

    Example:
        >>> max_pool2d_with_taps(np.arange(16.0).reshape(1, 4, 4), 2)[1].tolist()
        [[[3, 3], [3, 3]]]
    """
    axes = pool_axes(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    best, indices, taps = _pool(input, *axes)
    return best, np.where(taps < 0, MOST_TAPS, taps).astype(np.uint8) if has_taps(
        kernel_size
    ) else indices


def max_pool2d(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> Array:
    """The first of what :func:`max_pool2d_with_indices` returns."""
    return max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)[0]


def positions(taps: Array, input_size: Sequence[int], *window: Any) -> Array:
    """The indices ``h * W + w`` that taps stand for, -1 for none; indices as they are.

    Args:
        taps: [N, C, P, Q] or [C, P, Q].
        input_size: shape of the pooling's input.
        window: kernel_size, stride, padding and dilation; the last ones may be absent.
    """
    if taps.dtype == np.int64:
        return taps
    defaults: tuple[Any, ...] = ((), 0, 1)
    kernel, stride, padding, dilation = (*window, *defaults[len(window) - 1 :])
    rows, columns = pool_axes(input_size, kernel, stride, padding, dilation, False)
    r, s = taps.astype(np.int64) // columns.taps, taps.astype(np.int64) % columns.taps
    p, q = (np.arange(size) for size in taps.shape[-2:])
    h = (p * rows.stride - rows.padding)[:, np.newaxis] + r * rows.dilation
    w = q * columns.stride - columns.padding + s * columns.dilation
    return np.where(taps < rows.taps * columns.taps, h * columns.size + w, -1)


def max_pool2d_backward(
    grad_output: Array,
    indices: Array,
    input_size: Sequence[int],
    *window: Any,
    dtype: Any = None,
) -> Array:
    """Gives every element of ``grad_output`` to the input element that was taken, summed in
    float64.

    Args:
        grad_output: [N, C, P, Q] or [C, P, Q].
        indices: of the same shape, from :func:`max_pool2d_with_indices`; those outside the plane
            are left out. Or taps, from :func:`max_pool2d_with_taps`.
        input_size: shape of the input, and of the result.
        window: kernel_size, stride, padding and dilation, without which taps mean nothing.
        dtype: of the result; that of ``grad_output`` if None.
    """
    indices = positions(indices, input_size, *window)
    *planes, height, width = input_size
    plane = np.broadcast_to(
        np.arange(int(np.prod(planes))).reshape(*planes, 1, 1), grad_output.shape
    )
    result = np.zeros((int(np.prod(planes)), height * width))
    inside = (indices >= 0) & (indices < height * width)
    np.add.at(result, (plane[inside], indices[inside]), grad_output[inside].astype(np.float64))
    return result.reshape(tuple(input_size)).astype(dtype or grad_output.dtype)


# ---- The Numba fallback: the same as loops, parallel over planes


def max_pool2d_with_indices_numba(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """:func:`max_pool2d_with_indices` by compiled loops."""
    axes = pool_axes(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _pool_numba(input, *axes, False)


def max_pool2d_with_taps_numba(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """:func:`max_pool2d_with_taps` by compiled loops."""
    axes = pool_axes(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _pool_numba(input, *axes, has_taps(kernel_size))


def _pool_numba(
    input: Array, rows: PoolAxis, columns: PoolAxis, as_taps: bool
) -> tuple[Array, Array]:
    image = widened(batched(input))
    shape = (*image.shape[:2], rows.count, columns.count)
    output, places = np.empty(shape, image.dtype), np.empty(shape, np.int64)
    _forward(
        image,
        output,
        places,
        as_taps,
        np.array(_lowest(image.dtype), image.dtype)[()],
        (rows.taps, columns.taps),
        (rows.stride, columns.stride),
        (rows.padding, columns.padding),
        (rows.dilation, columns.dilation),
    )
    result = output.astype(input.dtype, copy=False)
    places = places.astype(np.uint8) if as_taps else places
    return (result[0], places[0]) if input.ndim == 3 else (result, places)


def max_pool2d_numba(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> Array:
    """:func:`max_pool2d` by compiled loops."""
    return max_pool2d_with_indices_numba(input, kernel_size, stride, padding, dilation, ceil_mode)[
        0
    ]


def max_pool2d_backward_numba(
    grad_output: Array, indices: Array, input_size: Sequence[int], *window: Any
) -> Array:
    """:func:`max_pool2d_backward` by compiled loops."""
    indices = positions(indices, input_size, *window)
    *planes, height, width = input_size
    count, outputs = int(np.prod(planes)), int(np.prod(grad_output.shape[-2:]))
    result = np.zeros((count, height * width))
    grad = widened(grad_output)
    _backward(grad.reshape(count, outputs), indices.reshape(count, outputs), result)
    return result.reshape(tuple(input_size)).astype(grad_output.dtype)


@parallel
def _forward(image, output, places, as_taps, lowest, window, stride, padding, dilation):  # type: ignore[no-untyped-def]
    N, C, P, Q = output.shape
    _, _, H, W = image.shape
    for nc in prange(N * C):
        n, c = nc // C, nc % C
        for p in range(P):
            for q in range(Q):
                h0 = p * stride[0] - padding[0]
                w0 = q * stride[1] - padding[1]
                first_h = h0 % dilation[0] if h0 < 0 else h0
                first_w = w0 % dilation[1] if w0 < 0 else w0
                best, best_h, best_w, held = lowest, first_h, first_w, False
                for h in range(
                    first_h, min(h0 + (window[0] - 1) * dilation[0] + 1, H), dilation[0]
                ):
                    for w in range(
                        first_w, min(w0 + (window[1] - 1) * dilation[1] + 1, W), dilation[1]
                    ):
                        value = image[n, c, h, w]
                        if value > best or np.isnan(value):
                            best, best_h, best_w = value, h, w
                        held = True
                output[n, c, p, q] = best
                if not as_taps:
                    places[n, c, p, q] = best_h * W + best_w
                elif held:
                    tap = (best_h - h0) // dilation[0] * window[1] + (best_w - w0) // dilation[1]
                    places[n, c, p, q] = tap
                else:
                    places[n, c, p, q] = 255


@parallel
def _backward(grad_output, indices, result):  # type: ignore[no-untyped-def]
    planes, outputs = grad_output.shape
    size = result.shape[1]
    for plane in prange(planes):
        for o in range(outputs):
            index = indices[plane, o]
            if 0 <= index < size:
                result[plane, index] += grad_output[plane, o]


@dataclass(frozen=True)
class MaxPool2dCase:
    """One problem; its name is the reason it exists."""

    name: str
    input: tuple[int, ...]
    kernel_size: IntPair
    stride: IntPair | None = None
    padding: IntPair = 0
    dilation: IntPair = 1
    ceil_mode: bool = False

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that follow the tensor."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }


CASES: tuple[MaxPool2dCase, ...] = (
    MaxPool2dCase("one element", (1, 1, 1, 1), 1),
    MaxPool2dCase("halving", (2, 16, 8, 8), 2),
    MaxPool2dCase("halving drops an odd rest", (2, 3, 7, 9), 2),
    MaxPool2dCase("ceil_mode keeps the odd rest", (2, 3, 7, 9), 2, ceil_mode=True),
    MaxPool2dCase("ceil_mode drops a window that starts in the padding behind", (1, 2, 5, 5), 2,
                  stride=2, padding=1, ceil_mode=True),
    MaxPool2dCase("ceil_mode with stride beyond the window", (1, 3, 6, 8), 2, stride=3,
                  ceil_mode=True),
    MaxPool2dCase("stem of a residual network", (1, 20, 15, 14), 3, stride=2, padding=1),
    MaxPool2dCase("overlapping windows share their winner", (2, 4, 9, 9), 3, stride=1),
    MaxPool2dCase("same size 3x3", (1, 5, 10, 11), 3, stride=1, padding=1),
    MaxPool2dCase("large window", (1, 3, 20, 19), 13, stride=1, padding=6),
    MaxPool2dCase("five by five", (1, 2, 20, 21), 5, stride=1, padding=2),
    MaxPool2dCase("window of as many taps as a byte tells apart", (1, 2, 17, 19), (15, 17),
                  stride=1, padding=(7, 8)),
    MaxPool2dCase("window of more taps than a byte tells apart", (1, 2, 16, 19), 16, stride=(1, 2),
                  padding=8),
    MaxPool2dCase("window as large as the input", (2, 6, 5, 7), (5, 7)),
    MaxPool2dCase("row window", (1, 4, 5, 37), (1, 5), stride=(1, 2)),
    MaxPool2dCase("column window", (1, 4, 33, 5), (5, 1), stride=(2, 1)),
    MaxPool2dCase("every argument different by axis", (2, 3, 14, 17), (3, 2), stride=(2, 3),
                  padding=(1, 0), dilation=(2, 3)),
    MaxPool2dCase("dilation", (1, 7, 11, 11), 3, stride=1, dilation=2),
    MaxPool2dCase("dilated window straddles the input", (1, 2, 4, 4), 2, stride=1, padding=1,
                  dilation=3),
    MaxPool2dCase("window wholly in padding", (1, 2, 2, 2), 2, stride=1, padding=1, dilation=3),
    MaxPool2dCase("dilated window wholly in the padding of one row", (1, 2, 1, 6), 2, stride=1,
                  padding=1, dilation=2),
    MaxPool2dCase("rows shorter than the window", (1, 2, 9, 2), 3, stride=3, padding=1),
    MaxPool2dCase("ceil_mode where no window holds its last column", (1, 2, 9, 2), (2, 3),
                  stride=4, ceil_mode=True),
    MaxPool2dCase("large window, channel tail past 32", (1, 33, 14, 12), 12, stride=2, padding=6),
    MaxPool2dCase("rows of a dilated window that others lie between", (1, 4, 6, 9), (2, 3),
                  stride=(2, 1), padding=1, dilation=(3, 1)),
    MaxPool2dCase("every window half in padding", (2, 3, 2, 2), 2, stride=2, padding=1),
    MaxPool2dCase("three by three without overlap", (2, 3, 10, 56), 3),
    MaxPool2dCase("stride of four", (1, 3, 9, 75), 3, stride=(2, 4), padding=1),
    MaxPool2dCase("stride leaves gaps", (1, 3, 11, 13), 2, stride=4),
    MaxPool2dCase("pointwise with stride", (1, 3, 8, 8), 1, stride=2),
    MaxPool2dCase("one channel", (3, 1, 9, 9), 2),
    MaxPool2dCase("channel tail past 64", (1, 70, 4, 4), 2),
    MaxPool2dCase("width tail past 64", (1, 2, 3, 70), (2, 2), stride=1),
    MaxPool2dCase("width tail past 64 with stride", (1, 2, 4, 71), 2),
    MaxPool2dCase("overlapping windows past 64", (1, 2, 7, 140), 3, stride=2, padding=1),
    MaxPool2dCase("many planes of one window", (9, 33, 2, 2), 2),
    MaxPool2dCase("unbatched", (3, 8, 9), 2),
    MaxPool2dCase("unbatched with padding", (5, 6, 6), 3, stride=2, padding=1),
    MaxPool2dCase("empty batch", (0, 3, 6, 6), 2),
)  # fmt: skip
