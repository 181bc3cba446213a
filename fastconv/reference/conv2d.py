"""The meaning of conv2d: two-dimensional cross-correlation and its two gradients.

    output[n,k,p,q] = bias[k] + sum_{c,r,s} input[n, g*C/G + c, h, w] * weight[k,c,r,s]
    grad_input[n, g*C/G + c, h, w] = sum_{k in g, r, s} grad_output[n,k,p,q] * weight[k,c,r,s]
    grad_weight[k,c,r,s]           = sum_{n,p,q} grad_output[n,k,p,q] * input[n, g*C/G + c, h, w]

    with  h = p * stride_h - top + r * dilation_h,  w = q * stride_w - left + s * dilation_w,  g = k
    / (K/G); input outside [0,H) x [0,W) counts as 0.

N batch; C input channels; H, W input extents; K output channels; R, S window; P, Q output extents;
G groups. Sums are formed in float64 and rounded once. Arguments are taken to be legal: whoever
calls has checked them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.reference._numba import parallel, prange
from fastconv.reference._window import (
    Array,
    IntPair,
    batched,
    padding_sides,
    pair,
    taps_of,
    widened,
)


@dataclass(frozen=True)
class _Shape:
    """Extents of one problem, by the letters above."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    G: int
    stride: tuple[int, int]
    sides: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    @property
    def P(self) -> int:  # noqa: N802
        return self._extent(0, self.H, self.R)

    @property
    def Q(self) -> int:  # noqa: N802
        return self._extent(1, self.W, self.S)

    def _extent(self, axis: int, size: int, taps: int) -> int:
        reach = self.dilation[axis] * (taps - 1) + 1
        return (size + sum(self.sides[axis]) - reach) // self.stride[axis] + 1

    def padded(self, image: Array, dtype: Any = np.float64) -> Array:
        """The image with its zeros around it."""
        return np.pad(image.astype(dtype, copy=False), ((0, 0), (0, 0), *self.sides))

    def cropped(self, padded: Array) -> Array:
        """The inside of ``padded``."""
        (top, _), (left, _) = self.sides
        return padded[:, :, top : top + self.H, left : left + self.W]

    def taps(self) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
        """(r, s, where in the padded input that tap is for all outputs)."""
        for r, s in np.ndindex(self.R, self.S):
            rows = taps_of(r * self.dilation[0], self.P, self.stride[0])
            columns = taps_of(s * self.dilation[1], self.Q, self.stride[1])
            yield r, s, (..., rows, columns)


def _shape(
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    groups: int,
) -> _Shape:
    n, c, h, w = (1, *input_size)[-4:]
    k, _, r, s = weight_size
    sides = padding_sides(padding)
    return _Shape(n, c, h, w, k, r, s, groups, pair(stride), sides, pair(dilation))


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    dtype: Any = None,
) -> Array:
    """Cross-correlates ``input`` with ``weight``, in float64.

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [K, C/G, R, S].
        bias: [K], or None.
        stride: of the window, (rows, columns) or one number for both.
        padding: (rows, columns), one number for both, or (top, bottom, left, right).
        dilation: distance of the window's taps, as ``stride``.
        groups: G, divides C and K.
        dtype: of the result; that of ``input`` if None.

    Returns:
        [N, K, P, Q] or [K, P, Q].

    Example:
        >>> conv2d(np.ones((1, 3, 3), "f4"), np.ones((1, 1, 2, 2), "f4")).tolist()
        [[[4.0, 4.0], [4.0, 4.0]]]
    """
    z = _shape(input.shape, weight.shape, stride, padding, dilation, groups)
    image = z.padded(batched(input))
    taps = weight.astype(np.float64).reshape(z.G, z.K // z.G, z.C // z.G, z.R, z.S)
    output = np.zeros((z.N, z.G, z.K // z.G, z.P * z.Q))
    for r, s, seen in z.taps():
        output += taps[..., r, s] @ image[seen].reshape(z.N, z.G, z.C // z.G, z.P * z.Q)
    output = output.reshape(z.N, z.K, z.P, z.Q)
    if bias is not None:
        output += bias.astype(np.float64)[:, np.newaxis, np.newaxis]
    return _result(output, input, dtype)


def conv2d_input_grad(
    grad_output: Array,
    weight: Array,
    input_size: Sequence[int],
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    dtype: Any = None,
) -> Array:
    """Gradient of ``sum(grad_output * conv2d(input, weight))`` by the input.

    Args:
        grad_output: [N, K, P, Q] or [K, P, Q].
        weight: [K, C/G, R, S].
        input_size: shape of the input, and of the result.
        stride, padding, dilation, groups, dtype: as for :func:`conv2d`.
    """
    z = _shape(input_size, weight.shape, stride, padding, dilation, groups)
    grad = grad_output.astype(np.float64).reshape(z.N, z.G, z.K // z.G, z.P * z.Q)
    taps = weight.astype(np.float64).reshape(z.G, z.K // z.G, z.C // z.G, z.R, z.S)
    image = z.padded(np.zeros((z.N, z.C, z.H, z.W)))
    for r, s, seen in z.taps():
        image[seen] += (taps[..., r, s].swapaxes(1, 2) @ grad).reshape(z.N, z.C, z.P, z.Q)
    return _result(z.cropped(image), grad_output, dtype)


def conv2d_weight_grad(
    grad_output: Array,
    input: Array,
    weight_size: Sequence[int],
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    dtype: Any = None,
) -> Array:
    """Gradient of ``sum(grad_output * conv2d(input, weight))`` by the weight.

    Args:
        grad_output: [N, K, P, Q] or [K, P, Q].
        input: [N, C, H, W] or [C, H, W].
        weight_size: shape of the weight, and of the result.
        stride, padding, dilation, groups, dtype: as for :func:`conv2d`.
    """
    z = _shape(input.shape, weight_size, stride, padding, dilation, groups)
    grad = grad_output.astype(np.float64).reshape(z.N, z.G, z.K // z.G, z.P * z.Q)
    image = z.padded(batched(input))
    result = np.zeros((z.K, z.C // z.G, z.R, z.S))
    for r, s, seen in z.taps():
        pixels = image[seen].reshape(z.N, z.G, z.C // z.G, z.P * z.Q)
        result[..., r, s] = (grad @ pixels.swapaxes(2, 3)).sum(0).reshape(z.K, z.C // z.G)
    return _result(result, None, dtype or input.dtype)


def _result(values: Array, like: Array | None, dtype: Any) -> Array:
    if like is not None and like.ndim == 3:
        values = values[0]
    return values.astype(dtype if like is None or dtype is not None else like.dtype)


# ---- The Numba fallback: the same sums as loops, parallel over independent outputs


def conv2d_numba(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Array:
    """:func:`conv2d` by compiled loops."""
    z = _shape(input.shape, weight.shape, stride, padding, dilation, groups)
    image = widened(batched(input))
    output = np.empty((z.N, z.K, z.P, z.Q), image.dtype)
    start = np.zeros(z.K) if bias is None else bias.astype(np.float64)
    _forward(
        z.padded(image, image.dtype), widened(weight), start, output, z.stride, z.dilation, z.G
    )
    return _result(output, input, None)


def conv2d_input_grad_numba(
    grad_output: Array,
    weight: Array,
    input_size: Sequence[int],
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Array:
    """:func:`conv2d_input_grad` by compiled loops."""
    z = _shape(input_size, weight.shape, stride, padding, dilation, groups)
    image = z.padded(np.zeros((z.N, z.C, z.H, z.W)))
    grad = widened(batched(grad_output))
    add_windows(grad, widened(weight), image, z.stride, z.dilation, z.G)
    return _result(z.cropped(image), grad_output, None)


def conv2d_weight_grad_numba(
    grad_output: Array,
    input: Array,
    weight_size: Sequence[int],
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Array:
    """:func:`conv2d_weight_grad` by compiled loops."""
    z = _shape(input.shape, weight_size, stride, padding, dilation, groups)
    image = widened(batched(input))
    result = np.empty((z.K, z.C // z.G, z.R, z.S), image.dtype)
    grad = widened(batched(grad_output))
    _weight_grad(grad, z.padded(image, image.dtype), result, z.stride, z.dilation, z.G)
    return _result(result, None, input.dtype)


@parallel
def _forward(image, weight, bias, output, stride, dilation, groups):  # type: ignore[no-untyped-def]
    N, K, P, Q = output.shape
    _, depth, R, S = weight.shape
    for nk in prange(N * K):
        n, k = nk // K, nk % K
        first = k // (K // groups) * depth
        plane = np.full((P, Q), bias[k])
        for c in range(depth):
            for r in range(R):
                for s in range(S):
                    tap = np.float64(weight[k, c, r, s])
                    for p in range(P):
                        h = p * stride[0] + r * dilation[0]
                        for q in range(Q):
                            w = q * stride[1] + s * dilation[1]
                            plane[p, q] += tap * np.float64(image[n, first + c, h, w])
        for p in range(P):
            for q in range(Q):
                output[n, k, p, q] = plane[p, q]


@parallel
def add_windows(grad_output, weight, image, stride, dilation, groups):  # type: ignore[no-untyped-def]
    """Adds the window, times each element of ``grad_output``, to ``image`` with its padding."""
    N, K, P, Q = grad_output.shape
    C = image.shape[1]
    _, depth, R, S = weight.shape
    for nc in prange(N * C):
        n, c = nc // C, nc % C
        group = c // depth
        for k in range(group * (K // groups), (group + 1) * (K // groups)):
            for r in range(R):
                for s in range(S):
                    tap = np.float64(weight[k, c - group * depth, r, s])
                    for p in range(P):
                        h = p * stride[0] + r * dilation[0]
                        for q in range(Q):
                            w = q * stride[1] + s * dilation[1]
                            image[n, c, h, w] += tap * np.float64(grad_output[n, k, p, q])


@parallel
def _weight_grad(grad_output, image, result, stride, dilation, groups):  # type: ignore[no-untyped-def]
    N, K, P, Q = grad_output.shape
    _, depth, R, S = result.shape
    for kc in prange(K * depth):
        k, c = kc // depth, kc % depth
        seen = k // (K // groups) * depth + c
        for r in range(R):
            for s in range(S):
                total = 0.0
                for n in range(N):
                    for p in range(P):
                        h = p * stride[0] + r * dilation[0]
                        for q in range(Q):
                            w = q * stride[1] + s * dilation[1]
                            grad = np.float64(grad_output[n, k, p, q])
                            total += grad * np.float64(image[n, seen, h, w])
                result[k, c, r, s] = total


@dataclass(frozen=True)
class Conv2dCase:
    """One problem; its name is the reason it exists."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, int, int, int]
    bias: bool = True
    stride: IntPair = 1
    padding: IntPair = 0
    dilation: IntPair = 1
    groups: int = 1

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that follow the tensors."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def reduction_length(self) -> int:
        """How many products one output sums."""
        _, depth, r, s = self.weight
        return depth * r * s


CASES: tuple[Conv2dCase, ...] = (
    Conv2dCase("one product", (1, 1, 1, 1), (1, 1, 1, 1)),
    Conv2dCase("no bias", (2, 3, 6, 7), (4, 3, 3, 3), bias=False, padding=1),
    Conv2dCase("same size 3x3", (2, 16, 14, 14), (32, 16, 3, 3), padding=1),
    Conv2dCase("pointwise is a matrix product", (3, 33, 5, 7), (17, 33, 1, 1)),
    Conv2dCase("pointwise of whole vectors of channels", (2, 16, 3, 5), (24, 16, 1, 1)),
    Conv2dCase("pointwise with stride skips pixels", (2, 8, 9, 8), (12, 8, 1, 1), stride=2),
    Conv2dCase("pointwise in padding sees bias alone", (1, 2, 3, 3), (3, 2, 1, 1), padding=1),
    Conv2dCase("stem 7x7 of three channels", (1, 3, 33, 30), (16, 3, 7, 7), stride=2, padding=3),
    Conv2dCase("patches do not overlap", (2, 3, 16, 16), (24, 3, 4, 4), stride=4),
    Conv2dCase("stride beyond the window leaves gaps", (1, 2, 11, 13), (3, 2, 2, 2), stride=3),
    Conv2dCase("stride leaves a rest unread", (2, 4, 8, 10), (5, 4, 3, 3), stride=(2, 3)),
    Conv2dCase("every argument different by axis", (2, 3, 13, 17), (4, 3, 3, 2),
               stride=(2, 1), padding=(2, 1), dilation=(1, 3)),
    Conv2dCase("dilation", (1, 5, 12, 12), (6, 5, 3, 3), padding=2, dilation=2),
    Conv2dCase("dilated window as large as the input", (1, 2, 7, 9), (3, 2, 3, 3), dilation=(3, 4)),
    Conv2dCase("padding wider than the window", (1, 3, 4, 5), (4, 3, 2, 3), padding=(5, 4)),
    Conv2dCase("window larger than the input", (2, 3, 2, 1), (4, 3, 5, 5), padding=2),
    Conv2dCase("asymmetric padding of an even window", (1, 3, 7, 8), (5, 3, 4, 2),
               padding=(1, 2, 0, 1)),
    Conv2dCase("padding on one side alone", (2, 2, 5, 6), (3, 2, 3, 3), padding=(0, 3, 2, 0)),
    Conv2dCase("row window", (1, 4, 6, 37), (8, 4, 1, 7), padding=(0, 3)),
    Conv2dCase("column window", (1, 4, 29, 5), (8, 4, 7, 1), padding=(3, 0)),
    Conv2dCase("groups", (2, 12, 7, 6), (18, 4, 3, 3), padding=1, groups=3),
    Conv2dCase("many small groups", (1, 32, 6, 6), (32, 4, 3, 3), padding=1, groups=8),
    Conv2dCase("depthwise 3x3", (2, 19, 10, 9), (19, 1, 3, 3), padding=1, groups=19),
    Conv2dCase("depthwise 5x5 with stride", (1, 16, 15, 13), (16, 1, 5, 5), stride=2, padding=2,
               groups=16),
    Conv2dCase("depthwise with multiplier", (2, 6, 8, 8), (18, 1, 3, 3), padding=1, groups=6),
    Conv2dCase("channel tail past 64", (1, 70, 5, 5), (67, 70, 3, 3), padding=1),
    Conv2dCase("width tail past 64", (1, 3, 3, 70), (5, 3, 3, 3), padding=1),
    Conv2dCase("one output channel", (2, 31, 8, 8), (1, 31, 3, 3)),
    Conv2dCase("one input channel", (2, 1, 9, 11), (33, 1, 3, 3), padding=1),
    Conv2dCase("one output pixel", (3, 20, 4, 4), (11, 20, 4, 4)),
    Conv2dCase("unbatched", (3, 8, 9), (4, 3, 3, 3), padding=1),
    Conv2dCase("unbatched with groups", (4, 5, 5), (6, 2, 3, 3), stride=2, padding=1, groups=2),
    Conv2dCase("empty batch", (0, 3, 6, 6), (4, 3, 3, 3)),
    Conv2dCase("batch of small images", (17, 3, 5, 5), (7, 3, 3, 3), padding=1),
)  # fmt: skip
