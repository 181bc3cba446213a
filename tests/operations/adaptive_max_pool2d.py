"""adaptive_max_pool2d, for the laws."""

from typing import ClassVar

import torch

import fastconv
from fastconv.reference import adaptive_max_pool2d as reference
from fastconv.reference import max_pool2d as backward

from .adaptive_avg_pool2d import AdaptiveAvgPool2d
from .base import FLOATING, Operation, at_least_one
from .max_pool2d import MaxPool2d


class AdaptiveMaxPool2d(Operation):
    name = "adaptive_max_pool2d"
    dtypes = FLOATING
    gradient_ops: ClassVar = {"input": "max_pool2d_backward"}
    opinfo = "nn.functional.adaptive_max_pool2d"
    module = "AdaptiveMaxPool2d"
    any_gradient_fits = True

    def shapes(self, case):
        return {"input": case.input}

    def options(self, case):
        return case.kwargs

    op_options = AdaptiveAvgPool2d.op_options
    leaves = MaxPool2d.leaves
    is_seen = AdaptiveAvgPool2d.is_seen
    module_call = MaxPool2d.module_call
    random_calls = AdaptiveAvgPool2d.random_calls
    output_size = AdaptiveAvgPool2d.output_size
    right_call = AdaptiveAvgPool2d.right_call

    def reduction_lengths(self, case):
        return {"output": 1, "input": AdaptiveAvgPool2d.reduction_lengths(self, case)["input"]}

    def torch_doors(self, case):
        functional, ops, options = fastconv.functional, torch.ops.fastconv, self.options(case)
        module = fastconv.AdaptiveMaxPool2d(**options, return_indices=True)
        doors = {
            "functional, indices": lambda input: functional.adaptive_max_pool2d(
                input, **options, return_indices=True
            ),
            "functional.adaptive_max_pool2d": lambda input: functional.adaptive_max_pool2d(
                input, **options
            ),
            "ops.adaptive_max_pool2d": lambda input: ops.adaptive_max_pool2d(
                input, **self.op_options(case)
            ),
            "ops, indices": lambda input: ops.adaptive_max_pool2d_with_indices(
                input, **self.op_options(case)
            ),
            "module": lambda input: module(input),
        }
        return {name: at_least_one(door) for name, door in doors.items()}

    def witness(self, case, tensors):
        return torch.nn.functional.adaptive_max_pool2d(
            **tensors, **self.options(case), return_indices=True
        )

    def reference(self, case, arrays):
        return reference.adaptive_max_pool2d_with_indices(**arrays, **self.op_options(case))

    def reference_gradients(self, case, arrays, grad_output):
        _, indices = self.reference(case, arrays)
        return {"input": backward.max_pool2d_backward(grad_output, indices, case.input)}

    def native_outputs(self, core, case, arrays):
        return core.adaptive_max_pool2d_with_indices(**arrays, **self.op_options(case))

    def native_gradients(self, core, case, arrays, grad_output):
        _, indices = self.native_outputs(core, case, arrays)
        return {"input": core.max_pool2d_backward(grad_output, indices, case.input)}

    def op_calls(self, case, tensors):
        ops, options = torch.ops.fastconv, self.op_options(case)
        values, with_indices = ops.adaptive_max_pool2d, ops.adaptive_max_pool2d_with_indices
        return {
            "adaptive_max_pool2d": (values.default, (tensors["input"],), options),
            "adaptive_max_pool2d_with_indices": (
                with_indices.default,
                (tensors["input"],),
                options,
            ),
        }

    def module_arguments(self, case):
        return (), self.options(case)

    huge_dtype: ClassVar[torch.dtype] = torch.float16

    @property
    def huge_case(self):
        """Every window is one pixel, but for the last, which has the last element."""
        rows = 2**15 + 1
        return reference.AdaptivePool2dCase("huge", (1, 2**15, rows, 2), (rows, 2))

    def wrong_calls(self):
        return [
            wrong
            for wrong in AdaptiveAvgPool2d.wrong_calls(self)
            if "one number" not in str(wrong) and "no numbers" not in str(wrong)
        ]


OPERATION = AdaptiveMaxPool2d()
