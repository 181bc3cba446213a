"""MaxPool2d: torch.nn.MaxPool2d with fastconv's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastconv.functional import max_pool2d

if TYPE_CHECKING:
    from torch import Tensor


class MaxPool2d(torch.nn.MaxPool2d):
    """A drop-in for ``torch.nn.MaxPool2d``: same arguments and ``repr``.

    Args:
        kernel_size, stride, padding, dilation, return_indices, ceil_mode: as for
            ``torch.nn.MaxPool2d``.

    Shape: [N, C, H, W] or [C, H, W] to [N, C, P, Q] or [C, P, Q]; two of them with return_indices.

    Example:
        >>> import torch
        >>> import fastconv
        >>> fastconv.MaxPool2d(2)(torch.randn(2, 16, 32, 32)).shape
        torch.Size([2, 16, 16, 16])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pools ``input``; (output, indices) with return_indices."""
        output: Tensor = max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )
        return output
