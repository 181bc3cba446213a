"""Where the windows of a pooling lie, shared by the references of all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.reference._window import Array, IntPair, pair


@dataclass(frozen=True)
class PoolAxis:
    """The windows along one axis of the image."""

    size: int
    taps: int
    stride: int
    padding: int
    dilation: int
    ceil_mode: bool

    @property
    def count(self) -> int:
        """Number of outputs.

        With ceil_mode the last window may hang over, but must start inside or in the padding
        before.
        """
        room = self.size + 2 * self.padding - self.dilation * (self.taps - 1) - 1
        if not self.ceil_mode:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        return count - 1 if (count - 1) * self.stride >= self.size + self.padding else count

    def positions(self, tap: int) -> Array:
        """Where that tap of every window is; outside [0, size) in padding."""
        return np.arange(self.count) * self.stride - self.padding + tap * self.dilation

    @property
    def first(self) -> Array:
        """The position of every window's first tap that is not before the input."""
        start = self.positions(0)
        return np.where(start < 0, start % self.dilation, start)


def pool_axes(
    input_size: Sequence[int],
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    dilation: IntPair,
    ceil_mode: bool,
) -> tuple[PoolAxis, PoolAxis]:
    """The windows along the rows and along the columns; no stride means the window itself."""
    window = pair(kernel_size)
    step = window if stride is None or stride == () or stride == [] else pair(stride)
    each = zip(input_size[-2:], window, step, pair(padding), pair(dilation), strict=True)
    rows, columns = (PoolAxis(*numbers, ceil_mode=ceil_mode) for numbers in each)
    return rows, columns


def adaptive_spans(inputs: int, outputs: int) -> tuple[Array, Array]:
    """Where the windows that cover an axis evenly begin and end."""
    windows, count = np.arange(outputs), max(outputs, 1)
    return windows * inputs // count, -(-(windows + 1) * inputs // count)


@dataclass(frozen=True)
class AdaptivePool2dCase:
    """One problem; its name is the reason it exists."""

    name: str
    input: tuple[int, ...]
    output_size: tuple[int | None, int | None]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that follow the tensor."""
        return {"output_size": self.output_size}
