"""The description of an operation, as far as it is the same for all of them."""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

import fastconv.testing

from .mistakes import WrongCall

Arrays = dict[
    str, Any
]  # the operation's tensors by the name of their parameter; None for an absent one
Outputs = tuple[Any, ...]

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def pair(value) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def pooled_extents(call: dict[str, Any], dilation=(1, 1)) -> tuple[int, ...]:
    """Rows and columns of what a window finds in an image, in Python's integers."""
    window, padding = pair(call["kernel_size"]), pair(call["padding"])
    stride = window if call["stride"] is None else pair(call["stride"])
    extents = []
    for axis, extent in enumerate(call["input"].shape[-2:]):
        room = extent + 2 * padding[axis] - dilation[axis] * (window[axis] - 1) - 1
        count = (-(-room // stride[axis]) if call["ceil_mode"] else room // stride[axis]) + 1
        hangs_over = (count - 1) * stride[axis] >= extent + padding[axis]
        extents.append(count - 1 if call["ceil_mode"] and hangs_over else count)
    return tuple(extents)


def at_least_one(call: Callable) -> Callable:
    """Wraps a function so that it returns a tuple of its outputs."""

    def tupled(*args, **kwargs) -> Outputs:
        result = call(*args, **kwargs)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    return tupled


class Operation:
    """What differs between operations. A subclass is a page long, the rest is derived here."""

    name: ClassVar[str]
    dtypes: ClassVar[tuple[torch.dtype, ...]]  # computed natively
    gradient_ops: ClassVar[
        dict[str, str | None]
    ]  # differentiable tensor: the op that computes its gradient
    opinfo: ClassVar[str]  # the entry of torch's op_db
    module: ClassVar[str]  # the class in fastconv.nn and torch.nn

    # ---- Described per operation ----

    def shapes(self, case) -> dict[str, tuple[int, ...] | None]:
        """The shape of every tensor that goes in, by parameter name; None for one that the case
        leaves out.
        """
        raise NotImplementedError

    def options(self, case) -> dict[str, Any]:
        """The other arguments, as `functional` takes them."""
        raise NotImplementedError

    def op_options(self, case) -> dict[str, Any]:
        """The other arguments, as the custom op and the reference take them."""
        raise NotImplementedError

    def reduction_lengths(self, case) -> dict[str, int]:
        """How many products an element of 'output' sums, and one of each tensor's gradient."""
        raise NotImplementedError

    def with_few_channels(self, case):
        """The same geometry with fewer images and channels; this one for operations without a
        weight.
        """
        *batch, channels, height, width = case.input
        size = (*(min(n, 2) for n in batch), min(channels, 2), height, width)
        return dataclasses.replace(case, input=size)

    def torch_doors(self, case) -> dict[str, Callable[..., Outputs]]:
        """Every way to call fastconv with torch tensors; each gives the outputs, or the first of
        them.
        """
        raise NotImplementedError

    def witness(self, case, tensors: Arrays) -> Outputs:
        """torch.nn.functional's own result."""
        raise NotImplementedError

    def reference(self, case, arrays: Arrays) -> Outputs:
        """The NumPy truth; takes and gives NumPy arrays."""
        raise NotImplementedError

    def reference_gradients(
        self, case, arrays: Arrays, grad_output: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The NumPy truth of the gradients of the first output."""
        raise NotImplementedError

    def native_outputs(self, core, case, arrays: Arrays) -> Outputs:
        """The compiled door that knows no torch, `fastconv._core`; takes and gives NumPy or DLPack
        arrays.
        """
        raise NotImplementedError

    def native_gradients(self, core, case, arrays: Arrays, grad_output) -> dict[str, Any]:
        """The gradients of the first output that `fastconv._core` computes."""
        raise NotImplementedError

    def op_calls(self, case, tensors: Arrays) -> dict[str, tuple[Any, tuple, dict]]:
        """An example call of every custom op that belongs to the operation: (op, args, kwargs)."""
        raise NotImplementedError

    def module_arguments(self, case) -> tuple[tuple, dict] | None:
        """Constructor arguments of the module that computes the case; None where no module can."""
        raise NotImplementedError

    # The gradient's op takes a grad_output of any rows and columns.
    any_gradient_fits: ClassVar[bool] = False

    huge_dtype: ClassVar[torch.dtype]

    @property
    def huge_case(self):
        """More than 2^31 elements, whose last one alone makes the last element of the output."""
        raise NotImplementedError

    def right_call(self) -> dict[str, Any]:
        """A legal call with torch tensors, every argument by name, into which mistakes are put."""
        raise NotImplementedError

    def wrong_calls(self) -> list[WrongCall]:
        """Every mistake of which somebody has thought."""
        raise NotImplementedError

    def is_legal_for_op(self, call: dict[str, Any]) -> bool:
        """Whether the custom op takes more than torch's function does, and takes this."""
        return False

    def module_call(self, call: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments, by name, of the module that does what a call with these arguments
        does.
        """
        raise NotImplementedError

    def random_calls(self):
        """A hypothesis strategy of calls, many of them wrong in one way or several."""
        raise NotImplementedError

    def output_size(self, call: dict[str, Any]) -> tuple[int, ...]:
        """The shape of the first output of a legal call, in Python's integers, which do not
        overflow.
        """
        raise NotImplementedError

    # ---- Derived ----

    @property
    def reference_module(self):
        return importlib.import_module(f"fastconv.reference.{self.name}")

    @property
    def functional(self) -> Callable:
        return getattr(fastconv.functional, self.name)

    @property
    def torch_functional(self) -> Callable:
        return getattr(torch.nn.functional, self.name)

    @property
    def differentiable(self) -> tuple[str, ...]:
        return tuple(self.gradient_ops)

    def cases(self, tag: str | None = None) -> list:
        cases = list(self.reference_module.CASES)
        if tag is None:
            return cases
        chosen = [case for case in cases if getattr(self, f"is_{tag}")(case)]
        assert chosen, f"no case of {self.name} is {tag}"
        return chosen

    @functools.cached_property
    def plain_case(self):
        """For laws that need but one case: the smallest that lacks nothing and is no extreme."""
        candidates = [
            case
            for case in self.cases("smooth")
            if self.is_modular(case)
            and self.is_usual(case)
            and len(case.input) == 4
            and min(case.input) > 1
            and min(case.input[2:]) > 4
            and None not in self.shapes(case).values()
        ]
        return min(candidates, key=self.elements)

    def elements(self, case) -> int:
        return sum(math.prod(shape) for shape in self.shapes(case).values() if shape is not None)

    def is_small(self, case) -> bool:
        """Few enough elements for laws that cost much per element; at least one in every tensor."""
        sizes = [math.prod(shape) for shape in self.shapes(case).values() if shape is not None]
        return all(sizes) and sum(sizes) <= 4000

    def is_seen(self, case) -> bool:
        """Every output looks at the input: then torch itself has a sound gradient."""
        return True

    def is_smooth(self, case) -> bool:
        return self.is_small(case) and self.is_seen(case)

    def is_transformable(self, case) -> bool:
        """The public function computes it, and its derivative exists: torch.func takes no ops."""
        return self.is_smooth(case) and self.is_modular(case)

    def is_modular(self, case) -> bool:
        """A module computes the case, padding and all."""
        return self.module_arguments(case) is not None

    def is_usual(self, case) -> bool:
        """torch itself computes it well: to every order of derivative, rounding halves once."""
        return True

    def is_plain(self, case) -> bool:
        return case is self.plain_case

    def tensors(
        self, case, dtype=torch.float32, layout="contiguous", seed=0, requires_grad=(), device="cpu"
    ) -> Arrays:
        """Fresh inputs of a case; channels_last applies to what has four axes."""
        tensors = {}
        for number, (name, shape) in enumerate(self.shapes(case).items()):
            if shape is None:
                tensors[name] = None
                continue
            fits = layout if len(shape) == 4 else "contiguous"
            tensor = fastconv.testing.make_input(shape, dtype, fits, seed=seed * 16 + number).to(
                device
            )
            tensors[name] = (
                tensor.requires_grad_(name in requires_grad) if requires_grad else tensor
            )
        return tensors

    def present(self, tensors: Arrays) -> tuple[str, ...]:
        """The differentiable tensors that the case does not leave out."""
        return tuple(name for name in self.differentiable if tensors[name] is not None)

    def call(self, case, tensors: Arrays) -> Outputs:
        """The first door: the public function."""
        return next(iter(self.torch_doors(case).values()))(**tensors)

    def first_output(self, case) -> Callable[..., Any]:
        """The public function of the case as a function of the differentiable tensors that are
        present.
        """
        names = self.present(self.shapes(case))

        def function(*tensors):
            absent = dict.fromkeys(self.shapes(case))
            return self.call(case, absent | dict(zip(names, tensors, strict=True)))[0]

        return function

    def first_witness(self, case) -> Callable[..., Any]:
        """torch's own twin of `first_output`."""
        names = self.present(self.shapes(case))

        def function(*tensors):
            absent = dict.fromkeys(self.shapes(case))
            return self.witness(case, absent | dict(zip(names, tensors, strict=True)))[0]

        return function

    def leaves(self, case, dtype=torch.float64, seed=0) -> tuple[torch.Tensor, ...]:
        """Fresh values for `first_output`, at which it is smooth."""
        tensors = self.tensors(case, dtype, seed=seed)
        return tuple(tensors[name] for name in self.present(tensors))

    def truth(self, case, tensors: Arrays) -> Outputs:
        """The reference's outputs for torch tensors, in float64 (or in the integers' own type)."""
        return self.reference(case, {name: as_truth(tensor) for name, tensor in tensors.items()})

    def check_outputs(self, case, actual: Outputs, expected: Outputs, context: str) -> None:
        """The first output within the tolerance; the others, indices, exactly."""
        assert 1 <= len(actual) <= len(expected), context
        fastconv.testing.assert_close(
            actual[0],
            expected[0],
            reduction_length=self.reduction_lengths(case)["output"],
            context=context,
        )
        for other, truth in zip(actual[1:], expected[1:], strict=False):
            np.testing.assert_array_equal(np.asarray(other), np.asarray(truth), err_msg=context)

    def check_gradient(self, case, name: str, actual, expected, context: str) -> None:
        fastconv.testing.assert_close(
            actual,
            expected,
            reduction_length=self.reduction_lengths(case)[name],
            context=f"{context}: gradient of {name}",
        )


def as_truth(tensor):
    """A torch tensor as the NumPy array that the reference computes with: float64, integers as they
    are.
    """
    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
