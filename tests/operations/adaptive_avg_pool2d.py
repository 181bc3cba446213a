"""adaptive_avg_pool2d, for the laws."""

from typing import ClassVar

import torch

from fastconv.reference import adaptive_avg_pool2d as reference

from .averages import Averages
from .base import pair
from .mistakes import (
    WrongCall,
    mostly,
    random_images,
    random_pair,
    strategies,
    wrong_images,
    wrong_pairs,
)


class AdaptiveAvgPool2d(Averages):
    name = "adaptive_avg_pool2d"
    gradient_ops: ClassVar = {"input": "adaptive_avg_pool2d_backward"}
    opinfo = "nn.functional.adaptive_avg_pool2d"
    module = "AdaptiveAvgPool2d"
    any_gradient_fits = True

    def op_options(self, case):
        own = zip(case.output_size, case.input[-2:], strict=True)
        return {"output_size": [extent if size is None else size for size, extent in own]}

    def gradient_options(self, case):
        return {}

    def is_seen(self, case):
        """torch refuses the gradient of no windows, which is zero."""
        return 0 not in case.output_size

    @property
    def huge_case(self):
        """Every window is one pixel, but for the last, which has the last element."""
        rows = 2**15 + 1
        return reference.AdaptivePool2dCase("huge", (1, 2**15, rows, 2), (rows, 2))

    def right_call(self):
        return {"input": torch.randn(2, 4, 8, 9), "output_size": 3}

    def reduction_lengths(self, case):
        """A mean is of the size of one of its terms; few windows share an element, unless there are
        more windows than elements.
        """
        sizes = zip(self.op_options(case)["output_size"], case.input[-2:], strict=True)
        rows, columns = (outputs // inputs + 2 for outputs, inputs in sizes)
        return {"output": 1, "input": rows * columns}

    def wrong_calls(self):
        images = [wrong for wrong in wrong_images() if "channels" not in str(wrong)]
        for wrong in images:
            given = wrong.change["input"]
            if not callable(given) and not isinstance(given, torch.Tensor):
                wrong.raises = TypeError  # torch's AttributeError is an accident
        of_sizes = [w for w in wrong_pairs("output_size") if "holds None" not in str(w)]
        return [
            *images,
            *of_sizes,
            WrongCall("no output_size", output_size=None),
            WrongCall("output_size of no numbers", output_size=[]),
            WrongCall("output_size of one number", output_size=[3]),
            WrongCall("output_size of more numbers than axes", output_size=(1, 2, 3, 4)),
            WrongCall("huge output_size", output_size=2**62),
            WrongCall("output_size that no memory holds", output_size=2**40),
        ]

    def random_calls(self):
        sizes, anything = strategies.integers(0, 12), strategies.integers(-1, 4)
        sizes = mostly(sizes, strategies.sampled_from([1, 1, 3]))
        return strategies.fixed_dictionaries(
            {
                "input": random_images([torch.float32, torch.float32, torch.float64, torch.int64]),
                "output_size": random_pair(sizes, anything),
            }
        )

    def output_size(self, call):
        return (*call["input"].shape[:-2], *pair(call["output_size"]))


OPERATION = AdaptiveAvgPool2d()
