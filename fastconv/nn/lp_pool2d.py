"""LPPool2d: torch.nn.LPPool2d with fastconv's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastconv.functional import lp_pool2d

if TYPE_CHECKING:
    from torch import Tensor


class LPPool2d(torch.nn.LPPool2d):
    """A drop-in for ``torch.nn.LPPool2d``: same arguments and ``repr``.

    Args:
        norm_type, kernel_size, stride, ceil_mode: as for ``torch.nn.LPPool2d``.

    Shape: [N, C, H, W] or [C, H, W] to [N, C, P, Q] or [C, P, Q].

    Example:
        >>> import torch
        >>> import fastconv
        >>> fastconv.LPPool2d(2, 3, stride=2)(torch.randn(2, 16, 33, 33)).shape
        torch.Size([2, 16, 16, 16])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The norms of the windows of ``input``."""
        output: Tensor = lp_pool2d(
            input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode
        )
        return output
