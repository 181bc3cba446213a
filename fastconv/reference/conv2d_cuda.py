"""conv2d and its gradients as Numba-CUDA kernels, one thread per element of the result: for CUDA
devices that the compiled part does not serve. The formulas are those of ``conv2d.py``.

Every function is ``<op>(queue, dtype, results, *arguments of the op)``: arrays lie on the device of
``queue``, ``results`` hold what is written, halves come as int16 (see ``_numba_cuda.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastconv.reference._numba_cuda import Queue, batched, per_dtype
from fastconv.reference._window import IntPair, padding_sides, pair

Results = tuple[Any, ...]
cuda: Any = None  # Numba's, from the first call on


def _geometry(stride: IntPair, padding: IntPair, dilation: IntPair, groups: int) -> tuple[int, ...]:
    (top, _), (left, _) = padding_sides(padding)
    return (*pair(stride), top, left, *pair(dilation), int(groups))


def conv2d(
    queue: Queue,
    dtype: str,
    results: Results,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> None:
    """Writes the cross-correlation of ``input`` and ``weight``."""
    output, has_bias = batched(results[0]), bias is not None
    # Without a bias any one-dimensional array stands in, of which nothing is read.
    start = bias if has_bias else weight[0, 0, 0] if 0 not in weight.shape else output[0, 0, 0]
    geometry = _geometry(stride, padding, dilation, groups)
    arguments = (batched(input), weight, start, has_bias, output, geometry)
    queue.launch(_forward(dtype), math.prod(output.shape), *arguments)


def conv2d_input_grad(
    queue: Queue,
    dtype: str,
    results: Results,
    grad_output: Any,
    weight: Any,
    input_size: Sequence[int],
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> None:
    """Writes the gradient by the input."""
    geometry = _geometry(stride, padding, dilation, groups)
    add_windows(queue, dtype, batched(results[0]), batched(grad_output), weight, None, geometry)


def add_windows(
    queue: Queue,
    dtype: str,
    image: Any,
    grad_output: Any,
    weight: Any,
    bias: Any,
    geometry: tuple[int, ...],
) -> None:
    """Writes the gradient by the input to ``image``, and a bias added, if there is one."""
    if 0 in image.shape:
        return
    has_bias = bias is not None
    start = bias if has_bias else image[0, 0, 0]  # stands in, of which nothing is read
    arguments = (grad_output, weight, start, has_bias, image, geometry)
    queue.launch(_input_grad(dtype), math.prod(image.shape), *arguments)


def conv2d_weight_grad(
    queue: Queue,
    dtype: str,
    results: Results,
    grad_output: Any,
    input: Any,
    weight_size: Sequence[int],
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> None:
    """Writes the gradient by the weight."""
    geometry = _geometry(stride, padding, dilation, groups)
    arguments = (batched(grad_output), batched(input), results[0], geometry)
    queue.launch(_weight_grad(dtype), math.prod(results[0].shape), *arguments)


@per_dtype
def _forward(load, store):  # type: ignore[no-untyped-def]
    def kernel(image, weight, bias, has_bias, output, geometry):  # type: ignore[no-untyped-def]
        stride_h, stride_w, top, left, dilation_h, dilation_w, groups = geometry
        N, K, P, Q = output.shape
        _, _, H, W = image.shape
        _, depth, R, S = weight.shape
        for element in range(cuda.grid(1), N * K * P * Q, cuda.gridsize(1)):
            q, p = element % Q, element // Q % P
            k, n = element // (Q * P) % K, element // (Q * P * K)
            first = k // (K // groups) * depth
            total = 0.0
            if has_bias:
                total += load(bias[k])
            for c in range(depth):
                for r in range(R):
                    h = p * stride_h - top + r * dilation_h
                    if h < 0 or h >= H:
                        continue
                    for s in range(S):
                        w = q * stride_w - left + s * dilation_w
                        if 0 <= w < W:
                            tap = float(load(weight[k, c, r, s]))
                            total += tap * float(load(image[n, first + c, h, w]))
            output[n, k, p, q] = store(total)

    return kernel


@per_dtype
def _input_grad(load, store):  # type: ignore[no-untyped-def]
    def kernel(grad_output, weight, bias, has_bias, image, geometry):  # type: ignore[no-untyped-def]
        stride_h, stride_w, top, left, dilation_h, dilation_w, groups = geometry
        N, C, H, W = image.shape
        _, K, P, Q = grad_output.shape
        _, depth, R, S = weight.shape
        for element in range(cuda.grid(1), N * C * H * W, cuda.gridsize(1)):
            w, h = element % W, element // W % H
            c, n = element // (W * H) % C, element // (W * H * C)
            group = c // depth
            total = 0.0
            if has_bias:
                total += load(bias[c])
            for k in range(group * (K // groups), (group + 1) * (K // groups)):
                for r in range(R):
                    # h = p * stride_h - top + r * dilation_h, solved for p.
                    y = h + top - r * dilation_h
                    if y < 0 or y % stride_h != 0 or y // stride_h >= P:
                        continue
                    for s in range(S):
                        x = w + left - s * dilation_w
                        if x >= 0 and x % stride_w == 0 and x // stride_w < Q:
                            tap = float(load(weight[k, c - group * depth, r, s]))
                            grad = load(grad_output[n, k, y // stride_h, x // stride_w])
                            total += tap * float(grad)
            image[n, c, h, w] = store(total)

    return kernel


@per_dtype
def _weight_grad(load, store):  # type: ignore[no-untyped-def]
    def kernel(grad_output, image, result, geometry):  # type: ignore[no-untyped-def]
        stride_h, stride_w, top, left, dilation_h, dilation_w, groups = geometry
        N, K, P, Q = grad_output.shape
        _, _, H, W = image.shape
        _, depth, R, S = result.shape
        for element in range(cuda.grid(1), K * depth * R * S, cuda.gridsize(1)):
            s, r = element % S, element // S % R
            c, k = element // (S * R) % depth, element // (S * R * depth)
            seen = k // (K // groups) * depth + c
            total = 0.0
            for n in range(N):
                for p in range(P):
                    h = p * stride_h - top + r * dilation_h
                    if h < 0 or h >= H:
                        continue
                    for q in range(Q):
                        w = q * stride_w - left + s * dilation_w
                        if 0 <= w < W:
                            grad = float(load(grad_output[n, k, p, q]))
                            total += grad * float(load(image[n, seen, h, w]))
            result[k, c, r, s] = store(total)

    return kernel
