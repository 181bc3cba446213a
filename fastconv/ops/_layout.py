"""Which memory layout a result has: channels_last if a tensor that decides is, else contiguous."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._check import Output

if TYPE_CHECKING:
    from torch import Tensor


def is_channels_last(array: Any) -> bool:
    """The rule of c10::is_channels_last_strides_2d; [C, H, W] is seen as torch's unsqueeze(0) shows
    it.

    False for what is not a torch tensor: NumPy has no channels_last.
    """
    if not hasattr(array, "stride"):
        return False
    sizes: Sequence[int] = array.shape
    strides: Sequence[int] = array.stride()
    if len(sizes) == 3:
        sizes, strides = (1, *sizes), (sizes[0] * strides[0], *strides)
    if len(sizes) != 4 or strides[1] == 0:
        return False
    least: int = 0
    for axis in (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < least:
            return False
        # N11W with stride_n == stride_c is contiguous: the first of the ambiguous layouts wins.
        if axis == 0 and least == strides[1]:
            return False
        least = strides[axis] * (sizes[axis] if sizes[axis] > 1 else 1)
    return True


def empty(output: Output, like: Tensor) -> Tensor:
    """A new tensor as promised by ``output``, on the device of ``like``."""
    dtype = like.dtype if output.dtype is None else output.dtype
    shape = output.shape
    if output.order is not None:
        return torch.empty_permuted(shape, output.order, dtype=dtype, device=like.device)
    if output.channels_last and len(shape) == 3:
        channels, _, width = shape
        return torch.empty_strided(
            shape, (1, width * channels, channels), dtype=dtype, device=like.device
        )
    layout = torch.channels_last if output.channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)
