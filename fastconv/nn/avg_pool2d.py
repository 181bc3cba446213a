"""AvgPool2d: torch.nn.AvgPool2d with fastconv's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastconv.functional import avg_pool2d

if TYPE_CHECKING:
    from torch import Tensor


class AvgPool2d(torch.nn.AvgPool2d):
    """A drop-in for ``torch.nn.AvgPool2d``: same arguments and ``repr``.

    Args:
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as for
            ``torch.nn.AvgPool2d``.

    Shape: [N, C, H, W] or [C, H, W] to [N, C, P, Q] or [C, P, Q].

    Example:
        >>> import torch
        >>> import fastconv
        >>> fastconv.AvgPool2d(2)(torch.randn(2, 16, 32, 32)).shape
        torch.Size([2, 16, 16, 16])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Averages the windows of ``input``."""
        output: Tensor = avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )
        return output
