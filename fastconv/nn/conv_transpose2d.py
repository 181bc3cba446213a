"""ConvTranspose2d: torch.nn.ConvTranspose2d with fastconv's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastconv.functional import conv_transpose2d

if TYPE_CHECKING:
    from torch import Tensor


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """A drop-in for ``torch.nn.ConvTranspose2d``: same arguments, initialisation, ``state_dict``
    and ``repr``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias,
        dilation, padding_mode, device, dtype:
            as for ``torch.nn.ConvTranspose2d``; the only padding_mode is ``"zeros"``.

    Shape: [N, C, H, W] or [C, H, W] to [N, K, P, Q] or [K, P, Q].

    Raises:
        ValueError: channels that groups do not divide, another padding_mode.

    Example:
        >>> import torch
        >>> import fastconv
        >>> layer = fastconv.ConvTranspose2d(16, 8, kernel_size=3, stride=2, padding=1)
        >>> image = torch.randn(2, 16, 12, 12)
        >>> layer(image).shape, layer(image, output_size=[24, 24]).shape
        (torch.Size([2, 8, 23, 23]), torch.Size([2, 8, 24, 24]))
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Computes the transposed convolution of ``input``.

        Args:
            input: [N, C, H, W] or [C, H, W].
            output_size: height and width of the output, or its whole size: chooses among those
                that a stride allows, instead of ``output_padding``.

        Raises:
            ValueError: no output_padding gives that size.
        """
        if self.padding_mode != "zeros":
            raise ValueError("Only `zeros` padding mode is supported for ConvTranspose2d")
        behind: Any = self.output_padding
        if output_size is not None:
            geometry: Any = (self.stride, self.padding, self.kernel_size, 2, self.dilation)
            behind = tuple(self._output_padding(input, output_size, *geometry))
        output: Tensor = conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            behind,
            self.groups,
            self.dilation,
        )
        return output
