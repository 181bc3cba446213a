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

Results = tuple[Any, ...]
cuda: Any = None  # Numba's, from the first call on


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
) -> None:
    window = pair(kernel_size)
    step = window if stride is None or stride == () or stride == [] else pair(stride)
    geometry = (*window, *step, *pair(padding), *pair(dilation))
    output = batched(results[0])
    indices = batched(results[-1])  # without indices the output stands in, to which none is written
    arguments = (batched(input), output, indices, len(results) > 1, lowest(dtype), geometry)
    queue.launch(_forward(dtype), math.prod(output.shape), *arguments)


def max_pool2d_backward(
    queue: Queue,
    dtype: str,
    results: Results,
    grad_output: Any,
    indices: Any,
    input_size: Sequence[int],
    *window: Any,
) -> None:
    """Gives every element of ``grad_output`` to the input element that was taken; one thread sums
    one plane, in float64 and in the order of the outputs.
    """
    image = batched(results[0])
    N, C, H, W = image.shape
    sums = queue.zeros((N, C, H * W))
    queue.launch(_scatter(dtype), N * C, batched(grad_output), batched(indices), sums)
    queue.launch(_round(dtype), N * C * H * W, sums, image)


@per_dtype
def _forward(load, store):  # type: ignore[no-untyped-def]
    def kernel(image, output, indices, with_indices, least, geometry):  # type: ignore[no-untyped-def]
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
            best, index = least, first_h * W + first_w
            for h in range(first_h, end_h, dilation_h):
                for w in range(first_w, end_w, dilation_w):
                    value = load(image[n, c, h, w])
                    if value > best or value != value:
                        best, index = value, h * W + w
            output[n, c, p, q] = store(best)
            if with_indices:
                indices[n, c, p, q] = index

    return kernel


@per_dtype
def _scatter(load, store):  # type: ignore[no-untyped-def]
    def kernel(grad_output, indices, sums):  # type: ignore[no-untyped-def]
        N, C, P, Q = grad_output.shape
        size = sums.shape[2]
        for plane in range(cuda.grid(1), N * C, cuda.gridsize(1)):
            n, c = plane // C, plane % C
            for p in range(P):
                for q in range(Q):
                    index = indices[n, c, p, q]
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
