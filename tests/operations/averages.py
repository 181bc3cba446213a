"""What avg_pool2d and adaptive_avg_pool2d are to the laws alike."""

import math
from typing import ClassVar

import torch

import fastconv

from .base import FLOATING, Operation, at_least_one


class Averages(Operation):
    dtypes = FLOATING

    def shapes(self, case):
        return {"input": case.input}

    def options(self, case):
        return case.kwargs

    @property
    def op(self):
        return getattr(torch.ops.fastconv, self.name)

    @property
    def backward(self):
        return getattr(torch.ops.fastconv, f"{self.name}_backward")

    def gradient_options(self, case):
        """The arguments of the gradient's op behind the sizes and the layout."""
        return self.op_options(case)

    def torch_doors(self, case):
        options, module = self.options(case), getattr(fastconv, self.module)(**self.options(case))
        doors = {
            f"functional.{self.name}": lambda input: self.functional(input, **options),
            f"ops.{self.name}": lambda input: self.op(input, **self.op_options(case)),
            "module": lambda input: module(input),
        }
        return {name: at_least_one(door) for name, door in doors.items()}

    def witness(self, case, tensors):
        return (self.torch_functional(**tensors, **self.options(case)),)

    def reference(self, case, arrays):
        function = getattr(self.reference_module, self.name)
        return (function(**arrays, **self.op_options(case)),)

    def reference_gradients(self, case, arrays, grad_output):
        function = getattr(self.reference_module, f"{self.name}_backward")
        return {"input": function(grad_output, case.input, False, **self.gradient_options(case))}

    def native_outputs(self, core, case, arrays):
        return (getattr(core, self.name)(**arrays, **self.op_options(case)),)

    def native_gradients(self, core, case, arrays, grad_output):
        function = getattr(core, f"{self.name}_backward")
        return {"input": function(grad_output, case.input, False, **self.gradient_options(case))}

    def op_calls(self, case, tensors):
        input, options = tensors["input"], self.op_options(case)
        # Its quotient by whatever a small window counts is exact.
        grad = torch.full_like(
            self.witness(case, {"input": input.detach()})[0], math.lcm(*range(1, 13))
        )
        last = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
        sizes = (grad.requires_grad_(input.requires_grad), case.input)
        rest = {"channels_last": last} | self.gradient_options(case)
        return {
            self.name: (self.op.default, (input,), options),
            f"{self.name}_backward": (self.backward.default, sizes, rest),
        }

    def module_arguments(self, case):
        return (), self.options(case)

    huge_dtype: ClassVar[torch.dtype] = torch.float16

    def module_call(self, call):
        return {name: value for name, value in call.items() if name != "input"}
