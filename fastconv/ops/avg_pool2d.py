"""avg_pool2d as torch ops: the mean of every window, and its gradient.

    d avg_pool2d(x)          = avg_pool2d_backward(g, size of x)
    d avg_pool2d_backward(g) = avg_pool2d(gg)

Shapes: x [N, C, H, W] or [C, H, W]; output and g [N, C, P, Q] or [C, P, Q].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._average import Averages, AveragesBackward, define_pair
from fastconv.ops._check import expect
from fastconv.ops._pool import pooled_size

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW = (
    "int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False, "
    "bool count_include_pad=True, int? divisor_override=None"
)


class AvgPool2d(Averages):
    """The mean of every window."""

    family = "avg_pool2d"
    schema = f"avg_pool2d(Tensor input, {_WINDOW}) -> Tensor"

    def output_size(
        self,
        size: Sequence[int],
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> tuple[int, ...]:
        law = "a divisor_override other than 0"
        expect(divisor_override != 0, self.name, law, divisor_override)
        return pooled_size(self.name, size, kernel_size, stride, padding, 1, ceil_mode)

    def torch(self, input: Tensor, *window: Any) -> Any:
        return torch.nn.functional.avg_pool2d(input, *window)


class AvgPool2dBackward(AveragesBackward):
    """Gives every element of a window its share of the window's gradient."""

    family = "avg_pool2d"
    schema = (
        "avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, bool channels_last, "
        f"{_WINDOW}) -> Tensor"
    )

    def torch(
        self,
        grad_output: Tensor,
        input_size: Any,
        channels_last: bool,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        window = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        like = grad_output.new_empty(tuple(input_size))  # only its size and layout are looked at
        gradient: Tensor = torch.ops.aten.avg_pool2d_backward(
            grad_output, like, *(_pair(each) for each in window[:3]), *window[3:]
        )
        return gradient


def _pair(value: Any) -> Any:
    return [value, value] if isinstance(value, int) else value


avg_pool2d, avg_pool2d_backward = define_pair(AvgPool2d, AvgPool2dBackward)
