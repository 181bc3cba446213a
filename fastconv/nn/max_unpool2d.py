"""MaxUnpool2d: torch.nn.MaxUnpool2d with fastconv's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastconv.functional import max_unpool2d

if TYPE_CHECKING:
    from torch import Tensor


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """A drop-in for ``torch.nn.MaxUnpool2d``: same arguments and ``repr``.

    Args:
        kernel_size, stride, padding: as for ``torch.nn.MaxUnpool2d``.

    Shape: input and indices [N, C, P, Q] or [C, P, Q] to [N, C, H, W] or [C, H, W].

    Example:
        >>> import torch
        >>> import fastconv
        >>> pool, unpool = fastconv.MaxPool2d(2, return_indices=True), fastconv.MaxUnpool2d(2)
        >>> unpool(*pool(torch.randn(2, 16, 8, 8))).shape
        torch.Size([2, 16, 8, 8])
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        """Puts the elements of ``input`` where ``indices`` say."""
        output: Tensor = max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )
        return output
