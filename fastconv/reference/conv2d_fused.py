"""conv2d with what networks put behind it, in one call:

    output[n,k,p,q] = activation(scale[k] * sum[n,k,p,q] + bias[k] + residual[n,k,p,q])

where ``sum`` is ``conv2d(input, weight)``.

``scale`` and ``bias`` are a batch normalisation in inference, ``residual`` a skip connection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.reference._window import Array, IntPair
from fastconv.reference.conv2d import conv2d, conv2d_numba


def _erf(x: Array) -> Array:
    result: Array = np.vectorize(math.erf, otypes=[np.float64])(x)
    return result


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):
        result: Array = x / (1 + np.exp(-x))
    return result


# By name, in the order of Activation in kernels/epilogue.h; torch.nn.functional has the formulas.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "silu": _silu,
    "gelu": lambda x: x / 2 * (1 + _erf(x / math.sqrt(2))),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


def finish(
    sums: Array,
    bias: Array | None,
    scale: Array | None,
    residual: Array | None,
    activation: int,
    dtype: Any,
) -> Array:
    """What becomes of the sums [..., K, P, Q], in float64, rounded once to ``dtype``."""
    if scale is not None:
        sums = sums * scale.astype(np.float64)[:, np.newaxis, np.newaxis]
    if bias is not None:
        sums = sums + bias.astype(np.float64)[:, np.newaxis, np.newaxis]
    if residual is not None:
        sums = sums + residual.astype(np.float64)
    activate = list(ACTIVATIONS.values())[activation]
    return activate(sums).astype(dtype)


def conv2d_fused(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    scale: Array | None = None,
    residual: Array | None = None,
    prepared: Array | None = None,
    activation: int = 0,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    dtype: Any = None,
) -> Array:
    """The formula above, in float64.

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [K, C/G, R, S].
        bias, scale: [K], or None for 0 and 1.
        residual: of the output's shape, or None for 0.
        prepared: ignored.
        activation: number of a name in :data:`ACTIVATIONS`.
        stride, padding, dilation, groups: as for ``conv2d``.
        dtype: of the result; that of ``input`` if None.

    Returns:
        [N, K, P, Q] or [K, P, Q].

    Example:
        >>> ones = np.ones((1, 1, 1), "f4")
        >>> conv2d_fused(ones, ones[np.newaxis], np.array([-3.0]), activation=1).tolist()
        [[[0.0]]]
    """
    geometry = stride, padding, dilation, groups
    sums = conv2d(input, weight, None, *geometry, dtype=np.float64)
    return finish(sums, bias, scale, residual, activation, dtype or input.dtype)


def conv2d_fused_numba(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    scale: Array | None = None,
    residual: Array | None = None,
    prepared: Array | None = None,
    activation: int = 0,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Array:
    """:func:`conv2d_fused`, its sums by compiled loops in the precision of ``input`` or better."""
    wide = input.astype(np.float32) if input.dtype == np.float16 else input
    sums = conv2d_numba(wide, weight, None, stride, padding, dilation, groups)
    return finish(sums.astype(np.float64), bias, scale, residual, activation, input.dtype)
