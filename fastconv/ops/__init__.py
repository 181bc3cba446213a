"""The operations as torch custom ops, ``torch.ops.fastconv.*``: schema, laws, derivative, batching, one file each."""

from __future__ import annotations

from fastconv.ops import conv2d, max_pool2d

__all__ = ["conv2d", "max_pool2d"]
