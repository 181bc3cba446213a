"""torch.nn's modules with fastconv's kernels: subclasses, same arguments, same ``state_dict``."""

from __future__ import annotations

from fastconv._torch_private import HAS_TORCH

if not HAS_TORCH:
    raise ImportError(
        "fastconv.nn needs torch, which is not installed or disabled by FASTCONV_TORCH=0"
    )

from fastconv.nn.conv2d import Conv2d
from fastconv.nn.max_pool2d import MaxPool2d

__all__ = ["Conv2d", "MaxPool2d"]
