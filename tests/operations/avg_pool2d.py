"""avg_pool2d, for the laws."""

from typing import ClassVar

import torch

from fastconv.reference import avg_pool2d as reference

from .averages import Averages
from .base import pair, pooled_extents
from .mistakes import (
    WrongCall,
    mostly,
    random_images,
    random_windows,
    strategies,
    wrong_images,
    wrong_windows,
)


class AvgPool2d(Averages):
    name = "avg_pool2d"
    gradient_ops: ClassVar = {"input": "avg_pool2d_backward"}
    opinfo = "nn.functional.avg_pool2d"
    module = "AvgPool2d"

    def op_options(self, case):
        options = self.options(case)
        return options | {"stride": [] if case.stride is None else case.stride}

    def reduction_lengths(self, case):
        """A mean is of the size of one of its terms, unless a smaller divisor is asked for; the
        gradient is a sum of as many shares as there are windows over an element.
        """
        rows, columns = pair(case.kernel_size)
        down, across = (rows, columns) if case.stride is None else pair(case.stride)
        size = -(-rows * columns // abs(case.divisor_override or rows * columns))
        return {"output": size, "input": size + -(-rows // down) * -(-columns // across)}

    @property
    def huge_case(self):
        """A window of one pixel, whose last position is the input's last element."""
        side = 2**15 + 1
        return reference.AvgPool2dCase("huge", (1, 2, side, side), 1, stride=2**11)

    def right_call(self):
        return {
            "input": torch.randn(2, 4, 8, 9),
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "ceil_mode": False,
            "count_include_pad": True,
            "divisor_override": None,
        }

    def wrong_calls(self):
        images = wrong_images()
        for wrong in images:
            if str(wrong) in ("input has no axes", "input of two axes"):
                wrong.raises = RuntimeError  # torch's IndexError is an accident
        return [
            *images,
            *wrong_windows(),
            WrongCall("count_include_pad is a number", count_include_pad=1),
            WrongCall("count_include_pad is None", count_include_pad=None),
            WrongCall("divisor_override of zero", divisor_override=0),
            WrongCall("divisor_override is a boolean", divisor_override=True),
            WrongCall("divisor_override is a float", divisor_override=2.0),
            WrongCall("divisor_override is a word", divisor_override="two"),
            WrongCall("divisor_override is a pair", divisor_override=(2, 2)),
            WrongCall("divisor_override is beyond 64 bits", divisor_override=2**64),
        ]

    def random_calls(self):
        dtypes = [torch.float32, torch.float32, torch.float64, torch.int64, torch.int32]
        divisors = strategies.one_of(strategies.none(), strategies.integers(-3, 9))
        return strategies.fixed_dictionaries(
            {
                "input": random_images(dtypes),
                **random_windows(),
                "count_include_pad": strategies.booleans(),
                "divisor_override": mostly(divisors, strategies.sampled_from([0, 1.5, True])),
            }
        )

    def output_size(self, call):
        return (*call["input"].shape[:-2], *pooled_extents(call))


OPERATION = AvgPool2d()
