"""adaptive_avg_pool2d as torch ops: the means of windows that cover the input evenly, and their
gradient.

    d adaptive_avg_pool2d(x)          = adaptive_avg_pool2d_backward(g, size of x)
    d adaptive_avg_pool2d_backward(g) = adaptive_avg_pool2d(gg, size of g)

Shapes: x [N, C, H, W] or [C, H, W]; output and g [N, C, P, Q] or [C, P, Q].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._average import Averages, AveragesBackward, define_pair
from fastconv.ops._check import expect
from fastconv.ops._pool import expect_image

if TYPE_CHECKING:
    from torch import Tensor


class AdaptiveAvgPool2d(Averages):
    """The means of as many windows as are asked for."""

    family = "adaptive_avg_pool2d"
    schema = "adaptive_avg_pool2d(Tensor input, SymInt[] output_size) -> Tensor"

    def output_size(self, size: Sequence[int], output_size: Any) -> tuple[int, ...]:
        expect_image(self.name, size, adaptive=True)
        legal = len(output_size) == 2 and all(each >= 0 for each in output_size)
        expect(legal, self.name, "output_size of 2 values >= 0", list(output_size))
        return (*size[:-2], *output_size)

    def gradient_constants(self, constants: Sequence[Any]) -> tuple[Any, ...]:
        return ()

    def torch(self, input: Tensor, output_size: Any) -> Any:
        return torch.nn.functional.adaptive_avg_pool2d(input, tuple(output_size))


class AdaptiveAvgPool2dBackward(AveragesBackward):
    """Gives every element of a window its share of the window's gradient."""

    family = "adaptive_avg_pool2d"
    schema = (
        "adaptive_avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, bool channels_last) "
        "-> Tensor"
    )

    def means_constants(
        self, grad_size: Sequence[int], constants: Sequence[Any]
    ) -> tuple[Any, ...]:
        return (tuple(grad_size[-2:]),)

    def torch(self, grad_output: Tensor, input_size: Any, channels_last: bool) -> Tensor:
        if grad_output.numel() == 0:  # torch's own op refuses
            return grad_output.new_zeros(tuple(input_size))
        like = grad_output.new_empty(tuple(input_size))  # only its size and layout are looked at
        gradient: Tensor = torch.ops.aten._adaptive_avg_pool2d_backward(grad_output, like)
        return gradient


adaptive_avg_pool2d, adaptive_avg_pool2d_backward = define_pair(
    AdaptiveAvgPool2d, AdaptiveAvgPool2dBackward
)
