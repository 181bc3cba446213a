"""By which algorithm the compiled kernels compute a convolution on the CPU."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from fastconv import _native
from fastconv._arguments import conv2d_geometry

# The beginning of what conv2d_prepare returns: see Conv2dPreparedHeader in kernels/conv2d.h.
_HEADER = struct.Struct("<Qiii4xqqqqqqdd")
_IMPOSSIBLE = 1e300


class Explanation(NamedTuple):
    """What :func:`explain` says.

    Attributes:
        algorithm: its name, one that ``FASTCONV_ALGO`` takes.
        reason: why it was chosen, in words.
        direct_cost: products (a multiplication and an addition) of the sums themselves.
        winograd_cost: what Winograd's algorithm costs in the same unit; None: it is impossible.
        prepared_bytes: memory that a frozen module keeps for it.
    """

    algorithm: str
    reason: str
    direct_cost: float
    winograd_cost: float | None
    prepared_bytes: int


def _core(name: str) -> Any:
    if _native.core is None:
        raise RuntimeError(f"{name}: expected the compiled part, got none ({_native.failure})")
    return _native.core


def allow_winograd(allowed: bool = True) -> None:
    """Says whether Winograd's algorithm may be used, for the whole process.

    It serves 3x3 convolutions that move by one, computed in float32, where it is faster than the
    sums themselves: 2.25 to 4 times fewer products, for an error that is 2 to 5 times larger (0.4
    to 1.7e-6 of the result's norm, instead of 0.15 to 0.35e-6). The environment variable
    ``FASTCONV_WINOGRAD=0`` forbids it from the start. The input's gradient obeys too.

    Args:
        allowed: False for direct sums everywhere.

    Raises:
        TypeError: not a bool.
        RuntimeError: fastconv runs without its compiled part.

    Example:
        >>> import fastconv
        >>> fastconv.allow_winograd(False)
        >>> fastconv.allow_winograd()
    """
    if not isinstance(allowed, bool):
        raise TypeError(f"allow_winograd: expected a bool, got {type(allowed).__name__}")
    _core("allow_winograd").allow_winograd(allowed)


def explain(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Explanation:
    """Says which algorithm ``functional.conv2d`` of these arguments runs on the CPU, and why.

    Args:
        input: [N, C, H, W] or [C, H, W], a CPU tensor or array; its layout matters.
        weight: [K, C/groups, R, S].
        bias, stride, padding, dilation, groups: as for ``functional.conv2d``.

    Returns:
        An :class:`Explanation`, for a weight that is prepared (see ``fastconv.freeze``).

    Raises:
        RuntimeError: as ``functional.conv2d``, or fastconv runs without its compiled part.

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> image = np.zeros((1, 64, 56, 56), "float32")
        >>> fastconv.explain(image, np.zeros((64, 64, 3, 3), "float32"), padding=1).algorithm
        'winograd'
    """
    core = _core("explain")
    if hasattr(input, "detach"):
        input, weight = input.detach(), weight.detach()
    geometry = conv2d_geometry("explain", weight.shape, stride, padding, dilation, groups)
    prepared = np.asarray(core.conv2d_prepare(input, weight, *geometry), dtype=np.uint8)
    if prepared.size == 0:
        return Explanation("none", "the result is empty", 0.0, None, 0)
    return _explained(core, prepared)


def _explained(core: Any, prepared: Any) -> Explanation:
    _, index, _, _, size, *_, direct, winograd = _HEADER.unpack_from(prepared)
    name = core.conv2d_algorithms()[index]
    reasons = {
        "winograd": "a 3x3 window that moves by one, where Winograd's algorithm is estimated to "
        f"take {winograd / direct:.2f} of the products of the sums themselves",
        "depthwise": "every channel is convolved for itself",
        "grouped": "groups of few channels: the lanes are channels of several groups, or pixels",
        "channels": "channels of the result fill the lanes: they lie next to each other, or its "
        "pixels are few",
        "shifted": "pixels of the result fill the lanes, and rows of the input are read in place, "
        "shifted",
        "pixels": "pixels of the result fill the lanes; the input is unfolded block by block",
    }
    reason = reasons.get(name, "no other algorithm computes this call faster")
    forced = core.forced_algorithm()
    if name == forced:
        reason = f"FASTCONV_ALGO={forced}"
    elif winograd < direct and name != "winograd" and not core.winograd_is_allowed():
        reason += "; Winograd's algorithm is not allowed"
    possible = winograd if winograd < _IMPOSSIBLE else None
    return Explanation(name, reason, direct, possible, size)
