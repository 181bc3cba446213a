"""Conv2d: torch.nn.Conv2d with fastconv's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastconv.functional import conv2d

if TYPE_CHECKING:
    from torch import Tensor


class Conv2d(torch.nn.Conv2d):
    """A drop-in for ``torch.nn.Conv2d``: same arguments, initialisation, ``state_dict``, ``repr``
    and padding modes.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
        padding_mode, device, dtype:
            as for ``torch.nn.Conv2d``.

    Shape: [N, C, H, W] or [C, H, W] to [N, K, P, Q] or [K, P, Q].

    Raises:
        ValueError: channels that groups do not divide, an unknown padding or padding_mode.

    Example:
        >>> import torch
        >>> import fastconv
        >>> layer = fastconv.Conv2d(3, 16, kernel_size=3, padding=1)
        >>> layer(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 16, 32, 32])
    """

    # Set by fastconv.freeze, for the instance.
    frozen_weight: Any = None

    def train(self, mode: bool = True) -> Conv2d:
        """As ``torch.nn.Module.train``; training thaws."""
        if mode:
            self.frozen_weight = None
        super().train(mode)
        return self

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            sides = self._reversed_padding_repeated_twice
            input = torch.nn.functional.pad(input, sides, mode=self.padding_mode)
            padding = 0, 0
        frozen = self.frozen_weight
        if frozen is not None:
            geometry = self.stride, padding, self.dilation, self.groups
            output: Tensor | None = frozen.conv2d(input, weight, bias, geometry)
            if output is not None:
                return output
        result: Tensor = conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups
        )
        return result
