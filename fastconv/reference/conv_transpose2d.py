"""The meaning of conv_transpose2d: the gradient of conv2d by its input, as an operation.

    output[n, g*K/G + k, h, w] = bias[g*K/G + k] + sum_{c,r,s} input[n,c,p,q] * weight[c,k,r,s]

    over all p, q, r, s with  h = p * stride_h - pad_h + r * dilation_h,  w = q * stride_w - pad_w +
    s * dilation_w,  and all c of group g = c / (C/G).

N batch; C input channels; H, W input extents; K output channels; R, S window; P, Q output extents;
G groups. Every input pixel adds the window, times what it holds, to the output; padding is cut off
afterwards, output_padding is added behind. Sums are formed in float64 and rounded once. Arguments
are taken to be legal: whoever calls has checked them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.reference._window import Array, IntPair, batched, pair, taps_of, widened
from fastconv.reference.conv2d import add_windows


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
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]

    def uncut(self) -> Array:
        """Zeros, as far as windows reach and output_padding asks for."""
        rows, columns = (
            (size - 1) * step + far * (taps - 1) + 1 + more
            for size, step, far, taps, more in zip(
                (self.H, self.W),
                self.stride,
                self.dilation,
                (self.R, self.S),
                self.output_padding,
                strict=True,
            )
        )
        return np.zeros((self.N, self.K, rows, columns))

    def cut(self, image: Array) -> Array:
        """The image without its padding."""
        top, left = self.padding
        return image[:, :, top : image.shape[2] - top, left : image.shape[3] - left]


def _shape(
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    groups: int,
    dilation: IntPair,
) -> _Shape:
    n, c, h, w = (1, *input_size)[-4:]
    _, depth, r, s = weight_size
    geometry = pair(stride), pair(padding), pair(output_padding), pair(dilation)
    return _Shape(n, c, h, w, depth * groups, r, s, groups, *geometry)


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
    *,
    dtype: Any = None,
) -> Array:
    """Adds up what every pixel of ``input`` makes of the window, in float64.

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [C, K/G, R, S].
        bias: [K], or None.
        stride: of the window over the output, (rows, columns) or one number for both.
        padding: what is cut off, (rows, columns) or one number for both.
        output_padding: what is added behind, as ``padding``.
        groups: G, divides C.
        dilation: distance of the window's taps, as ``stride``.
        dtype: of the result; that of ``input`` if None.

    Returns:
        [N, K, P, Q] or [K, P, Q].

    Example:
        >>> conv_transpose2d(np.ones((1, 2, 2), "f4"), np.ones((1, 1, 2, 2), "f4")).tolist()
        [[[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]]
    """
    z = _shape(input.shape, weight.shape, stride, padding, output_padding, groups, dilation)
    pixels = input.astype(np.float64).reshape(z.N, z.G, z.C // z.G, z.H * z.W)
    taps = weight.astype(np.float64).reshape(z.G, z.C // z.G, z.K // z.G, z.R, z.S)
    image = z.uncut()
    for r, s in np.ndindex(z.R, z.S):
        rows = taps_of(r * z.dilation[0], z.H, z.stride[0])
        columns = taps_of(s * z.dilation[1], z.W, z.stride[1])
        window = taps[..., r, s].swapaxes(1, 2) @ pixels
        image[:, :, rows, columns] += window.reshape(z.N, z.K, z.H, z.W)
    return _result(z, image, bias, input, dtype)


def _result(z: _Shape, image: Array, bias: Array | None, input: Array, dtype: Any) -> Array:
    values = z.cut(image)
    if bias is not None:
        values = values + bias.astype(np.float64)[:, np.newaxis, np.newaxis]
    return (values if input.ndim == 4 else values[0]).astype(dtype or input.dtype)


# ---- The Numba fallback: conv2d's loops, which add windows


def conv_transpose2d_numba(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
) -> Array:
    """:func:`conv_transpose2d` by compiled loops."""
    z = _shape(input.shape, weight.shape, stride, padding, output_padding, groups, dilation)
    image = z.uncut()
    add_windows(widened(batched(input)), widened(weight), image, z.stride, z.dilation, z.G)
    return _result(z, image, bias, input, None)


@dataclass(frozen=True)
class ConvTranspose2dCase:
    """One problem; its name is the reason it exists."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, int, int, int]
    bias: bool = True
    stride: IntPair = 1
    padding: IntPair = 0
    output_padding: IntPair = 0
    groups: int = 1
    dilation: IntPair = 1

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that follow the tensors."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "groups": self.groups,
            "dilation": self.dilation,
        }


CASES: tuple[ConvTranspose2dCase, ...] = (
    ConvTranspose2dCase("one product", (1, 1, 1, 1), (1, 1, 1, 1)),
    ConvTranspose2dCase("no bias", (2, 3, 6, 7), (3, 4, 3, 3), bias=False, padding=1),
    ConvTranspose2dCase("same size 3x3", (2, 24, 10, 10), (24, 16, 3, 3), padding=1),
    ConvTranspose2dCase("one pixel becomes a patch", (2, 20, 1, 1), (20, 12, 4, 4)),
    ConvTranspose2dCase("windows overlap by a pixel", (2, 2, 5, 6), (2, 3, 3, 3), stride=2),
    ConvTranspose2dCase("doubling by 4x4", (2, 6, 7, 5), (6, 9, 4, 4), stride=2, padding=1),
    ConvTranspose2dCase("doubling by 2x2 without overlap", (2, 18, 5, 8), (18, 20, 2, 2), stride=2),
    ConvTranspose2dCase("doubling by 3x3 needs output_padding", (2, 5, 6, 8), (5, 7, 3, 3),
                        stride=2, padding=1, output_padding=1),
    ConvTranspose2dCase("upsampling by 8, a window per channel", (1, 5, 4, 3), (5, 1, 16, 16),
                        stride=8, padding=4, groups=5),
    ConvTranspose2dCase("few output channels", (2, 16, 8, 9), (16, 3, 4, 4), stride=2, padding=1),
    ConvTranspose2dCase("pointwise is a matrix product", (3, 33, 5, 7), (33, 17, 1, 1)),
    ConvTranspose2dCase("pointwise with stride leaves gaps of bias", (2, 8, 5, 4), (8, 12, 1, 1),
                        stride=2, output_padding=1),
    ConvTranspose2dCase("stride beyond the window leaves gaps", (1, 2, 4, 5), (2, 3, 2, 2),
                        stride=3),
    ConvTranspose2dCase("every argument different by axis", (2, 3, 7, 6), (3, 4, 3, 2),
                        stride=(3, 1), padding=(2, 1), output_padding=(1, 0), dilation=(1, 3)),
    ConvTranspose2dCase("dilation", (1, 5, 6, 7), (5, 6, 3, 3), padding=2, dilation=2),
    ConvTranspose2dCase("dilation and stride without a common divisor", (1, 3, 5, 6), (3, 4, 3, 3),
                        stride=2, padding=1, dilation=3),
    ConvTranspose2dCase("dilation that is a multiple of the stride", (1, 3, 5, 4), (3, 4, 3, 2),
                        stride=2, dilation=4, output_padding=1),
    ConvTranspose2dCase("output_padding beyond the stride", (2, 3, 4, 5), (3, 4, 2, 3),
                        stride=2, padding=1, output_padding=(4, 3), dilation=5),
    ConvTranspose2dCase("output that no window reaches", (1, 2, 1, 1), (2, 3, 1, 1), stride=2,
                        padding=2, output_padding=4, dilation=5),
    ConvTranspose2dCase("padding cuts all but one pixel", (1, 4, 3, 3), (4, 6, 3, 3), padding=2),
    ConvTranspose2dCase("padding wider than the window", (1, 3, 9, 8), (3, 4, 2, 2),
                        padding=(3, 2)),
    ConvTranspose2dCase("row window", (1, 4, 6, 18), (4, 8, 1, 4), stride=(1, 2), padding=(0, 1)),
    ConvTranspose2dCase("column window", (1, 4, 15, 5), (4, 8, 4, 1), stride=(2, 1),
                        padding=(1, 0)),
    ConvTranspose2dCase("groups", (2, 12, 5, 4), (12, 6, 3, 3), stride=2, padding=1, groups=3),
    ConvTranspose2dCase("many small groups", (1, 32, 4, 4), (32, 4, 4, 4), stride=2, padding=1,
                        groups=8),
    ConvTranspose2dCase("depthwise 3x3", (2, 19, 7, 6), (19, 1, 3, 3), padding=1, groups=19),
    ConvTranspose2dCase("depthwise with multiplier", (2, 6, 5, 5), (6, 3, 3, 3), stride=2,
                        groups=6),
    ConvTranspose2dCase("channel tail past 64", (1, 70, 5, 5), (70, 67, 3, 3), padding=1),
    ConvTranspose2dCase("width tail past 64", (1, 3, 3, 35), (3, 5, 2, 2), stride=2),
    ConvTranspose2dCase("one output channel", (2, 31, 6, 6), (31, 1, 3, 3)),
    ConvTranspose2dCase("one input channel", (2, 1, 7, 8), (1, 33, 3, 3), stride=2, padding=1),
    ConvTranspose2dCase("unbatched", (3, 6, 7), (3, 4, 4, 4), stride=2, padding=1),
    ConvTranspose2dCase("unbatched with groups", (4, 5, 5), (4, 3, 3, 3), stride=2, padding=1,
                        output_padding=1, groups=2),
    ConvTranspose2dCase("empty batch", (0, 3, 6, 6), (3, 4, 3, 3), stride=2),
    ConvTranspose2dCase("batch of small images", (17, 3, 4, 4), (3, 7, 4, 4), stride=2, padding=1),
)  # fmt: skip
