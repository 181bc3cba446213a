"""What every operation means: NumPy functions readable like the formula, Numba loops, and the cases
that test them.

Never imports torch: the truth stays independent.
"""

from __future__ import annotations

from fastconv.reference import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    attention,
    avg_pool2d,
    conv2d,
    conv_transpose2d,
    max_pool2d,
    max_unpool2d,
    recurrent,
)

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "attention",
    "avg_pool2d",
    "conv2d",
    "conv_transpose2d",
    "max_pool2d",
    "max_unpool2d",
    "recurrent",
]
