"""AdaptiveMaxPool2d: torch.nn.AdaptiveMaxPool2d with fastconv's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastconv.functional import adaptive_max_pool2d

if TYPE_CHECKING:
    from torch import Tensor


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """A drop-in for ``torch.nn.AdaptiveMaxPool2d``: same arguments and ``repr``.

    Args:
        output_size, return_indices: as for ``torch.nn.AdaptiveMaxPool2d``; a size of 1 is global
            maximum pooling.

    Shape: [N, C, H, W] or [C, H, W] to [N, C, P, Q] or [C, P, Q]; two of them with return_indices.

    Example:
        >>> import torch
        >>> import fastconv
        >>> fastconv.AdaptiveMaxPool2d((1, None))(torch.randn(2, 16, 7, 7)).shape
        torch.Size([2, 16, 1, 7])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pools ``input``; (output, indices) with return_indices."""
        output: Tensor = adaptive_max_pool2d(input, self.output_size, self.return_indices)
        return output
