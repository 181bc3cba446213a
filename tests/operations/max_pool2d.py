"""max_pool2d, for the laws."""

from typing import ClassVar

import torch

import fastconv
from fastconv.reference import max_pool2d as reference

from .base import FLOATING, Operation, at_least_one, pair, pooled_extents
from .mistakes import (
    WrongCall,
    random_images,
    random_pair,
    random_windows,
    strategies,
    wrong_images,
    wrong_pairs,
    wrong_windows,
)

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class MaxPool2d(Operation):
    name = "max_pool2d"
    dtypes = FLOATING + INTEGERS
    gradient_ops: ClassVar = {"input": "max_pool2d_backward"}
    opinfo = "nn.functional.max_pool2d"
    module = "MaxPool2d"

    def shapes(self, case):
        return {"input": case.input}

    def options(self, case):
        return {
            "kernel_size": case.kernel_size,
            "stride": case.stride,
            "padding": case.padding,
            "dilation": case.dilation,
            "ceil_mode": case.ceil_mode,
        }

    def op_options(self, case):
        options = self.options(case)
        return options | {"stride": [] if case.stride is None else case.stride}

    def reduction_lengths(self, case):
        window = pair(case.kernel_size)
        return {
            "output": 1,
            "input": window[0] * window[1],
        }  # an element is the largest of at most R * S windows

    def torch_doors(self, case):
        functional, ops, options = fastconv.functional, torch.ops.fastconv, self.options(case)
        module = fastconv.MaxPool2d(**options, return_indices=True)
        doors = {
            "functional, indices": lambda input: functional.max_pool2d(
                input, **options, return_indices=True
            ),
            "functional.max_pool2d": lambda input: functional.max_pool2d(input, **options),
            "functional.max_pool2d_with_indices": lambda input: functional.max_pool2d_with_indices(
                input, **options
            ),
            "ops.max_pool2d": lambda input: ops.max_pool2d(input, **self.op_options(case)),
            "ops.max_pool2d_with_indices": lambda input: ops.max_pool2d_with_indices(
                input, **self.op_options(case)
            ),
            "module": lambda input: module(input),
        }
        return {name: at_least_one(door) for name, door in doors.items()}

    def witness(self, case, tensors):
        return torch.nn.functional.max_pool2d(**tensors, **self.options(case), return_indices=True)

    def reference(self, case, arrays):
        return reference.max_pool2d_with_indices(**arrays, **self.options(case))

    def reference_gradients(self, case, arrays, grad_output):
        _, indices = self.reference(case, arrays)
        return {"input": reference.max_pool2d_backward(grad_output, indices, case.input)}

    def native_outputs(self, core, case, arrays):
        return core.max_pool2d_with_indices(**arrays, **self.op_options(case))

    def native_gradients(self, core, case, arrays, grad_output):
        _, indices = self.native_outputs(core, case, arrays)
        options = self.op_options(case)
        window = [options[name] for name in ("kernel_size", "stride", "padding", "dilation")]
        return {"input": core.max_pool2d_backward(grad_output, indices, case.input, *window)}

    def op_calls(self, case, tensors):
        ops, options = torch.ops.fastconv, self.op_options(case)
        calls = {
            "max_pool2d": (ops.max_pool2d.default, (tensors["input"],), options),
            "max_pool2d_with_indices": (
                ops.max_pool2d_with_indices.default,
                (tensors["input"],),
                options,
            ),
        }
        if tensors["input"].is_floating_point():
            values, indices = self.witness(case, {"input": tensors["input"].detach()})
            grad = torch.ones_like(values).requires_grad_(tensors["input"].requires_grad)
            window = {
                name: options[name] for name in ("kernel_size", "stride", "padding", "dilation")
            }
            backward, taps = ops.max_pool2d_backward.default, ops.max_pool2d_with_taps.default
            places = taps(tensors["input"].detach(), **options)[1]
            calls["max_pool2d_with_taps"] = taps, (tensors["input"],), options
            calls["max_pool2d_backward"] = backward, (grad, places, case.input), window
            calls["max_pool2d_backward of any window"] = backward, (grad, indices, case.input), {}
        return calls

    def module_arguments(self, case):
        options = self.options(case)
        return tuple(
            options.pop(key) for key in ("kernel_size", "stride", "padding", "dilation")
        ), options

    def is_seen(self, case):
        """torch's backward would write outside its memory for a window that lies in the padding
        altogether.
        """
        _, indices = self.witness(case, self.tensors(case))
        return bool((indices < case.input[-2] * case.input[-1]).all())

    def leaves(self, case, dtype=torch.float64, seed=0):
        """Distinct values, further apart than a finite difference: no window changes its choice."""
        generator = torch.Generator().manual_seed(seed)
        count = torch.Size(case.input).numel()
        return ((torch.randperm(count, generator=generator).to(dtype) / 7).reshape(case.input),)

    huge_dtype = torch.uint8

    @property
    def huge_case(self):
        """A window of one pixel, whose last position is the input's last element."""
        side = 2**15 + 1
        return reference.MaxPool2dCase("huge", (1, 2, side, side), 1, stride=2**11)

    def right_call(self):
        return {
            "input": torch.randn(2, 4, 8, 9),
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "dilation": 1,
            "ceil_mode": False,
        }

    def wrong_calls(self):
        return [
            *wrong_images(),
            *wrong_windows(),
            *wrong_pairs("dilation"),
            WrongCall("dilated window larger than the input", dilation=9),
            WrongCall("dilation of zero", dilation=0),
            WrongCall("dilation of zero on one axis", dilation=(1, 0)),
            WrongCall("huge dilation", dilation=2**62),
            WrongCall("dilation that overflows 32 bits", dilation=2**31 - 1),
        ]

    def module_call(self, call):
        return {name: value for name, value in call.items() if name != "input"}

    def random_calls(self):
        dtypes = [torch.float32, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
        dilation = random_pair(strategies.integers(1, 2), strategies.integers(-1, 4))
        return strategies.fixed_dictionaries(
            {"input": random_images(dtypes), **random_windows(), "dilation": dilation}
        )

    def output_size(self, call):
        return (*call["input"].shape[:-2], *pooled_extents(call, pair(call["dilation"])))


OPERATION = MaxPool2d()
