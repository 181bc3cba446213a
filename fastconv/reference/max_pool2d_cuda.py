"""max_pool2d and its gradient as Numba-CUDA kernels: for CUDA devices that the compiled part does
not serve. The formulas, NaN and padding included, are those of ``max_pool2d.py``.

Every function is ``<op>(queue, dtype, results, *arguments of the op)``: arrays lie on the device of
``queue``, ``results`` hold what is written, halves come as int16 (see ``_numba_cuda.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastconv.reference._numba_cuda import Queue, batched, lowest, per_dtype
from fastconv.reference._window import IntPair, pair
from fastconv.reference.max_pool2d import has_taps

Results = tuple[Any, ...]
cuda: Any = None  # Numba's, from the first call on
_NOTHING, _INDICES, _TAPS = 0, 1, 2  # what is wanted of places


def max_pool2d_with_indices(
    queue: Queue,
    dtype: str,
    results: Results,
    input: Any,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> None:
    """Writes the largest element of every window, and where it was."""
    _pool(queue, dtype, results, input, kernel_size, stride, padding, dilation)


def max_pool2d_with_taps(
    queue: Queue,
    dtype: str,
    results: Results,
    input: Any,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> None:
    """Writes the largest element of every window, and its number in the window."""
    _pool(queue, dtype, results, input, kernel_size, stride, padding, dilation, taps=True)


def max_pool2d(
    queue: Queue,
    dtype: str,
    results: Results,
    input: Any,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> None:
    """Writes the largest element of every window."""
    _pool(queue, dtype, results, input, kernel_size, stride, padding, dilation)


def _pool(
    queue: Queue,
    dtype: str,
    results: Results,
    input: Any,
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    dilation: IntPair,
    taps: bool = False,
) -> None:
    window = pair(kernel_size)
    step = window if stride is None or stride == () or stride == [] else pair(stride)
    geometry = (*window, *step, *pair(padding), *pair(dilation))
    output = batched(results[0])
    places = batched(results[-1])  # without places the output stands in, to which none is written
    wanted = _NOTHING if len(results) == 1 else _TAPS if taps and has_taps(window) else _INDICES
    arguments = (batched(input), output, places, wanted, lowest(dtype), geometry)
    queue.launch(_forward(dtype), math.prod(output.shape), *arguments)


def max_pool2d_backward(
    queue: Queue,
    dtype: str,
    results: Results,
    grad_output: Any,
    indices: Any,
    input_size: Sequence[int],
    kernel_size: IntPair = (),
    stride: IntPair = (),
    padding: IntPair = 0,
    dilation: IntPair = 1,
) -> None:
    """Gives every element of ``grad_output`` to the input element that was taken; one thread sums
    one plane, in float64 and in the order of the outputs.
    """
    taps = str(indices.dtype) == "uint8"
    window = pair(kernel_size) if taps else (1, 1)
    step = window if stride in ((), []) else pair(stride)
    geometry = (*window, *step, *pair(padding), *pair(dilation))
    image = batched(results[0])
    N, C, H, W = image.shape
    sums = queue.zeros((N, C, H * W))
    queue.launch(
        _scatter(dtype), N * C, batched(grad_output), batched(indices), taps, W, geometry, sums
    )
    queue.launch(_round(dtype), N * C * H * W, sums, image)


@per_dtype
def _forward(load, store):  # type: ignore[no-untyped-def]
    def kernel(image, output, places, wanted, least, geometry):  # type: ignore[no-untyped-def]
        R, S, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = geometry
        N, C, P, Q = output.shape
        _, _, H, W = image.shape
        for element in range(cuda.grid(1), N * C * P * Q, cuda.gridsize(1)):
            q, p = element % Q, element // Q % P
            c, n = element // (Q * P) % C, element // (Q * P * C)
            h0, w0 = p * stride_h - pad_h, q * stride_w - pad_w
            # The first row and column of the window that are not before the input.
            first_h = h0 % dilation_h if h0 < 0 else h0
            first_w = w0 % dilation_w if w0 < 0 else w0
            end_h, end_w = h0 + (R - 1) * dilation_h + 1, w0 + (S - 1) * dilation_w + 1
            if end_h > H:
                end_h = H
            if end_w > W:
                end_w = W
            best, best_h, best_w = least, first_h, first_w
            for h in range(first_h, end_h, dilation_h):
                for w in range(first_w, end_w, dilation_w):
                    value = load(image[n, c, h, w])
                    if value > best or value != value:
                        best, best_h, best_w = value, h, w
            output[n, c, p, q] = store(best)
            if wanted == 1:
                places[n, c, p, q] = best_h * W + best_w
            if wanted == 2:
                tap = (best_h - h0) // dilation_h * S + (best_w - w0) // dilation_w
                places[n, c, p, q] = tap if first_h < end_h and first_w < end_w else 255

    return kernel


@per_dtype
def _scatter(load, store):  # type: ignore[no-untyped-def]
    def kernel(grad_output, places, taps, W, geometry, sums):  # type: ignore[no-untyped-def]
        R, S, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = geometry
        N, C, P, Q = grad_output.shape
        size = sums.shape[2]
        for plane in range(cuda.grid(1), N * C, cuda.gridsize(1)):
            n, c = plane // C, plane % C
            for p in range(P):
                for q in range(Q):
                    index = places[n, c, p, q]
                    if taps:
                        h = p * stride_h - pad_h + index // S * dilation_h
                        w = q * stride_w - pad_w + index % S * dilation_w
                        index = h * W + w if index < R * S else -1
                    if 0 <= index < size:
                        sums[n, c, index] += load(grad_output[n, c, p, q])

    return kernel


@per_dtype
def _round(load, store):  # type: ignore[no-untyped-def]
    def kernel(sums, image):  # type: ignore[no-untyped-def]
        N, C, H, W = image.shape
        for element in range(cuda.grid(1), N * C * H * W, cuda.gridsize(1)):
            w, h = element % W, element // W % H
            c, n = element // (W * H) % C, element // (W * H * C)
            image[n, c, h, w] = store(sums[n, c, h * W + w])

    return kernel
