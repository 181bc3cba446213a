"""conv_transpose2d, for the laws."""

import dataclasses
import math
from typing import ClassVar

import torch

import fastconv
from fastconv.reference import conv2d as conv2d_reference
from fastconv.reference import conv_transpose2d as reference

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

PAIRS = ("stride", "padding", "output_padding", "dilation")


def extents(sizes, taps, stride, padding, output_padding, dilation) -> list[int]:
    """Height and width of the output."""
    each = zip(sizes, taps, *map(pair, (stride, padding, output_padding, dilation)), strict=True)
    return [
        (size - 1) * step - 2 * pad + far * (count - 1) + more + 1
        for size, count, step, pad, more, far in each
    ]


class ConvTranspose2d(Operation):
    name = "conv_transpose2d"
    dtypes = FLOATING
    gradient_ops: ClassVar = {"input": "conv2d", "weight": "conv2d_weight_grad", "bias": None}
    opinfo = "nn.functional.conv_transpose2d"
    module = "ConvTranspose2d"

    def shapes(self, case):
        channels = case.weight[1] * case.groups
        return {
            "input": case.input,
            "weight": case.weight,
            "bias": (channels,) if case.bias else None,
        }

    def options(self, case):
        return case.kwargs

    def op_options(self, case):
        return case.kwargs

    def output_shape(self, case) -> tuple[int, ...]:
        geometry = (case.stride, case.padding, case.output_padding, case.dilation)
        spatial = extents(case.input[-2:], case.weight[2:], *geometry)
        return (*case.input[:-3], case.weight[1] * case.groups, *spatial)

    def reduction_lengths(self, case):
        C, per_group, R, S = case.weight
        batch = case.input[0] if len(case.input) == 4 else 1
        # As for conv2d: Winograd's error is up to three times that of the sums themselves.
        stretch = 3 if (R, S, case.groups) == (3, 3, 1) and pair(case.stride) == (1, 1) else 1
        return {
            "output": stretch * C // case.groups * R * S + 1,
            "input": stretch * per_group * R * S,
            "weight": max(batch * math.prod(case.input[-2:]), 1),
            "bias": max(batch * math.prod(self.output_shape(case)[-2:]), 1),
        }

    def with_few_channels(self, case):
        groups = min(case.groups, 3)
        *batch, _, height, width = case.input
        channels = min(case.weight[0] // case.groups, 2) * groups
        weight = (channels, min(case.weight[1], 2), *case.weight[2:])
        size = (*(min(n, 2) for n in batch), channels, height, width)
        return dataclasses.replace(case, input=size, weight=weight, groups=groups)

    def is_usual(self, case) -> bool:
        """torch 2.13 refuses the third derivative where there is output_padding, and adds up in
        halves where it is more than the stride.
        """
        return pair(case.output_padding) == (0, 0)

    def torch_doors(self, case):
        options = self.options(case)
        doors = {
            "functional": lambda input, weight, bias: fastconv.functional.conv_transpose2d(
                input, weight, bias, **options
            ),
            "ops": lambda input, weight, bias: torch.ops.fastconv.conv_transpose2d(
                input, weight, bias, **options
            ),
        }
        return {f"{name}.conv_transpose2d": at_least_one(door) for name, door in doors.items()}

    def witness(self, case, tensors):
        return (torch.nn.functional.conv_transpose2d(**tensors, **self.options(case)),)

    def reference(self, case, arrays):
        return (reference.conv_transpose2d(**arrays, **self.options(case)),)

    def reference_gradients(self, case, arrays, grad_output):
        """By conv2d's reference, on as many windows as the input has pixels."""
        options = {name: getattr(case, name) for name in ("stride", "dilation", "groups")}
        before, behind = pair(case.padding), pair(case.output_padding)
        # Windows that would begin behind the last pixel's are none: the padding behind ends before.
        after = [
            pad - more // step * step
            for pad, more, step in zip(before, behind, pair(case.stride), strict=True)
        ]
        grad = grad_output
        for axis, rest in zip((-2, -1), after, strict=True):
            if rest < 0:
                grad = grad.take(range(max(grad.shape[axis] + rest, 0)), axis)
        sides = (before[0], max(after[0], 0), before[1], max(after[1], 0))
        channels = tuple(axis for axis in range(grad.ndim) if axis != grad.ndim - 3)
        gradients = {"bias": grad_output.sum(axis=channels)}
        if 0 in grad.shape[-2:]:  # no window reaches the output
            gradients["input"] = arrays["input"] * 0
            gradients["weight"] = arrays["weight"] * 0
        else:
            gradients["input"] = conv2d_reference.conv2d(
                grad, arrays["weight"], None, padding=sides, **options
            )
            gradients["weight"] = conv2d_reference.conv2d_weight_grad(
                arrays["input"], grad, case.weight, padding=sides, **options
            )
        return {name: gradients[name] for name in self.present(arrays)}

    def native_outputs(self, core, case, arrays):
        return (core.conv_transpose2d(**arrays, **self.op_options(case)),)

    def native_gradients(self, core, case, arrays, grad_output):
        """conv2d's own ops, which its laws prove."""
        return {}

    def op_calls(self, case, tensors):
        arguments = (tensors["input"], tensors["weight"], tensors["bias"])
        op = torch.ops.fastconv.conv_transpose2d.default
        return {"conv_transpose2d": (op, arguments, self.op_options(case))}

    def module_arguments(self, case):
        C, per_group, R, S = case.weight
        options = self.options(case) | {"bias": case.bias}
        return (C, per_group * case.groups, (R, S)), options

    huge_dtype = torch.bfloat16

    @property
    def huge_case(self):
        """A window of one pixel; padding cuts all but the last pixels off."""
        side = 2**15 + 1
        return reference.ConvTranspose2dCase(
            "huge", (1, 2, side, side), (2, 1, 1, 1), bias=False, padding=(side // 2, side // 2)
        )

    def right_call(self):
        return {
            "input": torch.randn(2, 4, 5, 4),
            "weight": torch.randn(4, 3, 3, 3),
            "bias": torch.randn(6),
            "stride": 2,
            "padding": 1,
            "output_padding": 1,
            "groups": 2,
            "dilation": 1,
        }

    def wrong_calls(self):
        return [
            *(wrong for name in ("input", "weight", "bias") for wrong in wrong_tensors(name)),
            *(wrong for name in PAIRS for wrong in wrong_pairs(name)),
            WrongCall("no input", input=None),
            WrongCall("no weight", weight=None),
            WrongCall("input of two axes", input=lambda x: x[0, 0]),
            WrongCall("input of five axes", input=lambda x: x[None]),
            WrongCall("weight of three axes", weight=lambda w: w[0]),
            WrongCall("bias of two axes", bias=lambda b: b[None]),
            WrongCall("bias is a column", bias=lambda b: b[:, None]),
            WrongCall("bias too long", bias=torch.ones(7)),
            WrongCall("bias of a group alone", bias=torch.ones(3)),
            WrongCall("bias of one element", bias=torch.ones(1)),
            WrongCall("too many channels", input=torch.ones(2, 6, 5, 4)),
            WrongCall("too few channels", input=torch.ones(2, 2, 5, 4)),
            WrongCall("no channels", input=torch.ones(2, 0, 5, 4)),
            WrongCall("channels of conv2d's weight", weight=torch.ones(6, 2, 3, 3)),
            WrongCall("weight of no input channels", weight=torch.ones(0, 3, 3, 3)),
            WrongCall("no channels at all", input=torch.ones(2, 0, 5, 4),
                      weight=torch.ones(0, 3, 3, 3)),
            WrongCall("weight of no output channels", weight=torch.ones(4, 0, 3, 3), bias=None),
            WrongCall("weight without columns", weight=torch.ones(4, 3, 3, 0)),
            WrongCall("weight without rows", weight=torch.ones(4, 3, 0, 3)),
            WrongCall("input without rows", input=torch.ones(2, 4, 0, 4)),
            WrongCall("input without columns", input=torch.ones(2, 4, 5, 0)),
            WrongCall("unbatched input without rows", input=torch.ones(4, 0, 4)),
            WrongCall("unbatched input of too many channels", input=torch.ones(5, 5, 4)),
            WrongCall("padding cuts everything", padding=6),
            WrongCall("padding cuts all columns", RuntimeError, padding=(0, 5)),
            WrongCall("padding cuts more than everything", padding=100),
            WrongCall("padding that overflows", padding=2**62),
            WrongCall("padding by name", padding="same"),
            WrongCall("output_padding of the stride", output_padding=2),
            WrongCall("output_padding beyond the stride on one axis", output_padding=(1, 2)),
            WrongCall("output_padding of a stride of one", stride=1),
            WrongCall("output_padding of stride and dilation", output_padding=3, dilation=3),
            WrongCall("output_padding that overflows", output_padding=2**62),
            WrongCall("dilation that overflows", RuntimeError, dilation=2**62),
            WrongCall("stride that overflows", RuntimeError, stride=2**62),
            WrongCall("stride of more than memory", RuntimeError, stride=2**40),
            WrongCall("stride of zero", stride=0),
            WrongCall("stride of zero on one axis", stride=(2, 0)),
            WrongCall("stride of no numbers", stride=[]),
            WrongCall("dilation of zero", dilation=0),
            WrongCall("groups of zero", groups=0),
            WrongCall("negative groups", groups=-2),
            WrongCall("groups do not divide the channels", groups=3),
            WrongCall("huge groups", groups=2**62),
            WrongCall("groups beyond 64 bits", groups=2**64),
            WrongCall("groups is a float", groups=2.0),
            WrongCall("groups is None", groups=None),
            WrongCall("groups is a pair", groups=(2, 2)),
            WrongCall("float64 input, float32 weight", input=lambda x: x.double()),
            WrongCall("float32 input, float64 weight", weight=lambda w: w.double()),
            WrongCall("bfloat16 input, float32 weight", input=lambda x: x.bfloat16()),
            WrongCall("float64 bias", bias=lambda b: b.double()),
            WrongCall("integer bias", bias=lambda b: b.long()),
            WrongCall("integer input, float weight", input=lambda x: x.int()),
            WrongCall("float input, integer weight", weight=lambda w: w.int()),
            WrongCall("complex input, float weight", input=lambda x: x.cfloat()),
        ]  # fmt: skip

    def module_call(self, call):
        C, per_group, R, S = self.right_call()["weight"].shape
        sizes = {"in_channels": C, "out_channels": per_group * 2, "kernel_size": (R, S)}
        return sizes | {name: call[name] for name in (*PAIRS, "groups")}

    def random_calls(self):
        fitting = [(1, 2, 3), (2, 4, 1), (4, 4, 2)]
        return strategies.sampled_from(fitting).flatmap(lambda sizes: self._random_calls(*sizes))

    def _random_calls(self, groups: int, channels: int, per_group: int):
        anything, any_sizes = strategies.integers(-1, 4), strategies.integers(0, 4)
        one_to_three, sizes = strategies.integers(1, 3), strategies.integers(3, 6)
        dtypes = [torch.float32] * 31 + [torch.float64]
        images = strategies.tuples(
            strategies.integers(0, 3), strategies.just(channels), sizes, sizes
        )
        weights = strategies.tuples(
            strategies.just(channels), strategies.just(per_group), one_to_three, one_to_three
        )
        wrong_bias = strategies.sampled_from([(per_group + 5,), (per_group * groups, 1)])
        biases = mostly(strategies.just((per_group * groups,)), wrong_bias)
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
                "padding": random_pair(strategies.integers(0, 1), anything),
                "output_padding": random_pair(strategies.just(0), anything),
                "groups": mostly(
                    strategies.just(groups), strategies.sampled_from([0, -1, 3, None])
                ),
                # torch's oneDNN minds no dilation of 0 where the window has one tap.
                "dilation": random_pair(
                    strategies.integers(1, 2), anything.filter(lambda number: number != 0)
                ),
            }
        )

    def output_size(self, call):
        input, weight = call["input"], call["weight"]
        spatial = extents(input.shape[-2:], weight.shape[2:], *(call[name] for name in PAIRS))
        return (*input.shape[:-3], weight.shape[1] * call["groups"], *spatial)


OPERATION = ConvTranspose2d()
