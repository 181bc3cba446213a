"""AdaptiveAvgPool2d: torch.nn.AdaptiveAvgPool2d with fastconv's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastconv.functional import adaptive_avg_pool2d

if TYPE_CHECKING:
    from torch import Tensor


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """A drop-in for ``torch.nn.AdaptiveAvgPool2d``: same arguments and ``repr``.

    Args:
        output_size: as for ``torch.nn.AdaptiveAvgPool2d``; 1 is global average pooling.

    Shape: [N, C, H, W] or [C, H, W] to [N, C, P, Q] or [C, P, Q].

    Example:
        >>> import torch
        >>> import fastconv
        >>> fastconv.AdaptiveAvgPool2d((1, None))(torch.randn(2, 16, 7, 7)).shape
        torch.Size([2, 16, 1, 7])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Averages the windows of ``input``."""
        output: Tensor = adaptive_avg_pool2d(input, self.output_size)
        return output
