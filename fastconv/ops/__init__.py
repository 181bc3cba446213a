"""The torch ops ``torch.ops.fastconv.*``: schema, laws, derivative, batching, a file each."""

from __future__ import annotations

from fastconv.ops import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    attention,
    avg_pool2d,
    conv2d,
    conv2d_fused,
    conv2d_prepared,
    conv_transpose2d,
    max_pool2d,
    max_unpool2d,
    recurrent,
)
from fastconv.ops._define import register_flop_formulas

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "attention",
    "avg_pool2d",
    "conv2d",
    "conv2d_fused",
    "conv2d_prepared",
    "conv_transpose2d",
    "max_pool2d",
    "max_unpool2d",
    "recurrent",
    "register_flop_formulas",
]
