"""conv2d, for the laws."""

import dataclasses
import math
from typing import ClassVar

import torch

import fastconv
from fastconv.reference import conv2d as reference

from .base import FLOATING, Operation, at_least_one, pair
from .mistakes import (
    WrongCall,
    mostly,
    random_pair,
    random_tensor,
    strategies,
    wrong_pairs,
    wrong_tensors,
)


def explicit_padding(case) -> tuple[int, ...]:
    """(h, w), or (top, bottom, left, right) where the case says 'same' or says so itself."""
    if case.padding == "valid":
        return (0, 0)
    if case.padding != "same":
        return pair(case.padding)
    sides = []
    for taps, dilation in zip(case.weight[2:], pair(case.dilation), strict=True):
        total = dilation * (taps - 1)
        sides += [total // 2, total - total // 2]
    return tuple(sides) if (sides[0], sides[2]) != (sides[1], sides[3]) else (sides[0], sides[2])


class Conv2d(Operation):
    name = "conv2d"
    dtypes = FLOATING
    gradient_ops: ClassVar = {
        "input": "conv2d_input_grad",
        "weight": "conv2d_weight_grad",
        "bias": None,
    }
    opinfo = "nn.functional.conv2d"
    module = "Conv2d"

    def shapes(self, case):
        return {
            "input": case.input,
            "weight": case.weight,
            "bias": case.weight[:1] if case.bias else None,
        }

    def options(self, case):
        return {
            "stride": case.stride,
            "padding": case.padding,
            "dilation": case.dilation,
            "groups": case.groups,
        }

    def op_options(self, case):
        return self.options(case) | {"padding": explicit_padding(case)}

    def output_shape(self, case) -> tuple[int, ...]:
        padding = explicit_padding(case)
        total = (
            (2 * padding[0], 2 * padding[1])
            if len(padding) == 2
            else (sum(padding[:2]), sum(padding[2:]))
        )
        spatial = [
            (extent + pad - dilation * (taps - 1) - 1) // stride + 1
            for extent, pad, taps, stride, dilation in zip(
                case.input[-2:],
                total,
                case.weight[2:],
                pair(case.stride),
                pair(case.dilation),
                strict=True,
            )
        ]
        return (*case.input[:-3], case.weight[0], *spatial)

    def reduction_lengths(self, case):
        K, per_group, R, S = case.weight
        batch = case.input[0] if len(case.input) == 4 else 1
        pixels = batch * math.prod(self.output_shape(case)[-2:])
        # Winograd's algorithm sums products of transformed numbers: its error is up to three times
        # that of the sums themselves (the table of `python -m bench.winograd_points`).
        stretch = 3 if (R, S, case.groups) == (3, 3, 1) and pair(case.stride) == (1, 1) else 1
        return {
            "output": stretch * per_group * R * S + 1,
            "input": stretch * (K // case.groups) * R * S,
            "weight": max(pixels, 1),
            "bias": max(pixels, 1),
        }

    def with_few_channels(self, case):
        *batch, _, height, width = case.input
        K, depth, R, S = case.weight
        groups, per_group = min(case.groups, 3), min(K // case.groups, 2)
        depth = min(depth, 2)
        size = (*(min(n, 2) for n in batch), depth * groups, height, width)
        weight = (per_group * groups, depth, R, S)
        return dataclasses.replace(case, input=size, weight=weight, groups=groups)

    def is_functional(self, case) -> bool:
        """torch's signature has no padding of four sides."""
        return isinstance(case.padding, (int, str)) or len(case.padding) == 2

    def torch_doors(self, case):
        doors = {}
        if self.is_functional(case):
            doors["functional.conv2d"] = lambda input, weight, bias: fastconv.functional.conv2d(
                input, weight, bias, **self.options(case)
            )
        doors["ops.conv2d"] = lambda input, weight, bias: torch.ops.fastconv.conv2d(
            input, weight, bias, **self.op_options(case)
        )
        return {name: at_least_one(door) for name, door in doors.items()}

    def witness(self, case, tensors):
        input, options = tensors["input"], self.options(case)
        if not self.is_functional(case):
            top, bottom, left, right = case.padding
            input = torch.nn.functional.pad(input, (left, right, top, bottom))
            options["padding"] = 0
        return (torch.nn.functional.conv2d(input, tensors["weight"], tensors["bias"], **options),)

    def reference(self, case, arrays):
        return (reference.conv2d(**arrays, **self.op_options(case)),)

    def reference_gradients(self, case, arrays, grad_output):
        options = self.op_options(case)
        batch_and_space = tuple(
            axis for axis in range(grad_output.ndim) if axis != grad_output.ndim - 3
        )
        gradients = {
            "input": reference.conv2d_input_grad(
                grad_output, arrays["weight"], case.input, **options
            ),
            "weight": reference.conv2d_weight_grad(
                grad_output, arrays["input"], case.weight, **options
            ),
            "bias": grad_output.sum(axis=batch_and_space),
        }
        return {name: gradients[name] for name in self.present(arrays)}

    def native_outputs(self, core, case, arrays):
        return (core.conv2d(**arrays, **self.op_options(case)),)

    def native_gradients(self, core, case, arrays, grad_output):
        options = self.op_options(case)
        return {
            "input": core.conv2d_input_grad(grad_output, arrays["weight"], case.input, **options),
            "weight": core.conv2d_weight_grad(grad_output, arrays["input"], case.weight, **options),
        }

    def op_calls(self, case, tensors):
        ops, options = torch.ops.fastconv, self.op_options(case)
        input, weight, bias = tensors["input"], tensors["weight"], tensors["bias"]
        grad = torch.ones(self.output_shape(case), dtype=input.dtype)
        grad.requires_grad_(input.requires_grad)
        return {
            "conv2d": (ops.conv2d.default, (input, weight, bias), options),
            "conv2d_input_grad": (
                ops.conv2d_input_grad.default,
                (grad, weight, case.input),
                options,
            ),
            "conv2d_weight_grad": (
                ops.conv2d_weight_grad.default,
                (grad, input, case.weight),
                options,
            ),
        }

    def module_arguments(self, case):
        if not self.is_functional(case):
            return None
        K, per_group, R, S = case.weight
        options = self.options(case) | {"bias": case.bias}
        return (per_group * case.groups, K, (R, S)), options

    huge_dtype = torch.bfloat16

    @property
    def huge_case(self):
        """A window of one pixel, whose last position is the input's last element."""
        side = 2**15 + 1
        return reference.Conv2dCase(
            "huge", (1, 2, side, side), (1, 2, 1, 1), bias=False, stride=2**11
        )

    def right_call(self):
        return {
            "input": torch.randn(2, 4, 6, 5),
            "weight": torch.randn(6, 2, 3, 3),
            "bias": torch.randn(6),
            "stride": 1,
            "padding": 1,
            "dilation": 1,
            "groups": 2,
        }

    def wrong_calls(self):
        return [
            *(wrong for name in ("input", "weight", "bias") for wrong in wrong_tensors(name)),
            *(wrong for name in ("stride", "padding", "dilation") for wrong in wrong_pairs(name)),
            WrongCall("no input", input=None),
            WrongCall("no weight", weight=None),
            WrongCall("input of two axes", input=lambda x: x[0, 0]),
            WrongCall("input of five axes", input=lambda x: x[None]),
            WrongCall("weight of three axes", weight=lambda w: w[0]),
            WrongCall("weight of two axes", weight=lambda w: w[0, 0]),
            WrongCall("bias of two axes", bias=lambda b: b[None]),
            WrongCall("bias is a column", bias=lambda b: b[:, None]),
            WrongCall("bias too long", bias=torch.ones(7)),
            WrongCall("bias of one element", bias=torch.ones(1)),
            WrongCall("bias of no elements", bias=torch.ones(0)),
            WrongCall("too many channels", input=torch.ones(2, 5, 6, 5)),
            WrongCall("too few channels", input=torch.ones(2, 2, 6, 5)),
            WrongCall("no channels", input=torch.ones(2, 0, 6, 5)),
            WrongCall(
                "groups do not divide the output channels", weight=torch.ones(5, 2, 3, 3), bias=None
            ),
            WrongCall("weight of no output channels", weight=torch.ones(0, 2, 3, 3), bias=None),
            WrongCall("weight without columns", weight=torch.ones(6, 2, 3, 0)),
            WrongCall("weight without rows", weight=torch.ones(6, 2, 0, 3)),
            WrongCall("input too low for the window", input=torch.ones(2, 4, 0, 5)),
            WrongCall(
                "input too narrow for the window", input=torch.ones(2, 4, 6, 1), padding=(1, 0)
            ),
            WrongCall("input without columns", input=torch.ones(2, 4, 6, 0)),
            WrongCall("input without pixels", input=torch.ones(2, 4, 0, 0), padding=0),
            WrongCall("unbatched input without rows", input=torch.ones(4, 0, 5)),
            WrongCall("unbatched input of too many channels", input=torch.ones(5, 6, 5)),
            WrongCall("window larger than the input", weight=torch.ones(6, 2, 9, 3)),
            WrongCall("dilated window larger than the input", dilation=9),
            WrongCall("dilation that overflows", RuntimeError, dilation=2**62),
            WrongCall("stride of zero", stride=0),
            WrongCall("stride of zero on one axis", stride=(1, 0)),
            WrongCall("stride of no numbers", stride=[]),
            WrongCall("dilation of zero", dilation=0),
            WrongCall("dilation of zero on one axis", dilation=(0, 1)),
            WrongCall("padding that overflows", padding=2**62),
            WrongCall("padding of more than memory", padding=2**40),
            WrongCall("padding of an unknown name", padding="full"),
            WrongCall("padding named in capitals", padding="SAME"),
            WrongCall("padding of an empty name", padding=""),
            WrongCall("same padding with a stride", padding="same", stride=2),
            WrongCall("groups of zero", groups=0),
            WrongCall("negative groups", groups=-2),
            WrongCall("groups do not divide the channels", groups=3),
            WrongCall("huge groups", groups=2**62),
            WrongCall("groups beyond 64 bits", groups=2**64),
            WrongCall("groups is a float", groups=2.0),
            WrongCall("groups is a word", groups="two"),
            WrongCall("groups is None", groups=None),
            WrongCall("groups is a pair", groups=(2, 2)),
            WrongCall("float64 input, float32 weight", input=lambda x: x.double()),
            WrongCall("float32 input, float64 weight", weight=lambda w: w.double()),
            WrongCall("bfloat16 input, float32 weight", input=lambda x: x.bfloat16()),
            WrongCall(
                "float16 input, bfloat16 weight",
                input=lambda x: x.half(),
                weight=lambda w: w.bfloat16(),
            ),
            WrongCall("float64 bias", bias=lambda b: b.double()),
            WrongCall("integer bias", bias=lambda b: b.long()),
            WrongCall("integer input, float weight", input=lambda x: x.int()),
            WrongCall("float input, integer weight", weight=lambda w: w.int()),
            WrongCall("complex input, float weight", input=lambda x: x.cfloat()),
        ]

    def is_legal_for_op(self, call):
        return isinstance(call["padding"], (list, tuple)) and len(call["padding"]) == 4

    def module_call(self, call):
        K, per_group, R, S = self.right_call()["weight"].shape
        sizes = {"in_channels": per_group * 2, "out_channels": K, "kernel_size": (R, S)}
        return sizes | {name: call[name] for name in ("stride", "padding", "dilation", "groups")}

    def random_calls(self):
        fitting = [(1, 2, 2), (1, 4, 4), (2, 4, 2), (4, 4, 1)]
        return strategies.sampled_from(fitting).flatmap(lambda sizes: self._random_calls(*sizes))

    def _random_calls(self, groups: int, channels: int, per_group: int):
        anything, any_sizes = strategies.integers(-1, 4), strategies.integers(0, 4)
        one_to_three, extents = strategies.integers(1, 3), strategies.integers(5, 9)
        dtypes = [torch.float32] * 31 + [torch.float64]
        images = strategies.tuples(
            strategies.integers(0, 3), strategies.just(channels), extents, extents
        )
        weights = strategies.tuples(
            strategies.just(4), strategies.just(per_group), one_to_three, one_to_three
        )
        biases = strategies.sampled_from([(4,), (4,), (2,), (4, 1)])
        return strategies.fixed_dictionaries(
            {
                "input": random_tensor(
                    mostly(images, strategies.lists(any_sizes, min_size=2, max_size=5)), dtypes
                ),
                "weight": random_tensor(
                    mostly(weights, strategies.lists(any_sizes, min_size=3, max_size=5)), dtypes
                ),
                "bias": mostly(strategies.none(), random_tensor(biases, dtypes)),
                "stride": random_pair(one_to_three, anything),
                "padding": random_pair(strategies.integers(0, 2), anything),
                "dilation": random_pair(strategies.integers(1, 2), anything),
                "groups": mostly(
                    strategies.just(groups), strategies.sampled_from([0, -1, 3, None])
                ),
            }
        )

    def output_size(self, call):
        input, weight = call["input"], call["weight"]
        spatial = [
            (extent + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            for extent, taps, pad, stride, dilation in zip(
                input.shape[-2:],
                weight.shape[2:],
                *(pair(call[name]) for name in ("padding", "stride", "dilation")),
                strict=True,
            )
        ]
        return (*input.shape[:-3], weight.shape[0], *spatial)


OPERATION = Conv2d()
