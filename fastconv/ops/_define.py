"""What an operation is, and how its declaration becomes a torch custom op.

An operation is a subclass of :class:`Op` in one short file. It says what the op means to torch
(schema, laws, shapes, derivative, batching rule); :func:`define` derives everything else from that:
fake kernel, autograd in its three forms, autocast, vmap, flop count, fallback kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from fastconv import _torch_private as private
from fastconv._torch_private import HAS_TORCH, torch
from fastconv.ops._check import Output
from fastconv.ops._layout import empty

if TYPE_CHECKING:
    from torch import Tensor

Grads = tuple["Tensor | None", ...]
Unfold = Callable[[Any], Any]

OPS: dict[str, Op] = {}  # by name, in the order of definition


class Op:
    """One operation.

    Arguments come as in the schema: tensors first, then constants; trailing defaults may be absent.
    """

    schema: ClassVar[str]
    family: ClassVar[str]  # the module of fastconv.reference that holds <name> and <name>_numba
    dtypes: ClassVar[frozenset[str]]
    autocast: ClassVar[bool] = False  # run in the lower precision of torch.autocast
    integer_outputs: ClassVar[tuple[int, ...]] = ()  # results without a derivative
    differentiable_outputs: ClassVar[int] = 1  # the first results; more than one: grads are a tuple
    # torch.func and forward mode see `torch`, made of torch's own differentiable functions.
    transforms_by_torch: ClassVar[bool] = False
    # The op that also returns what the derivative needs: eager differentiation runs it instead.
    training: ClassVar[Op | None] = None

    # What Python code calls: the cheapest correct way for the state torch is in.
    call: Callable[..., Any]
    overload: Any  # torch.ops.fastconv.<name>.default
    torch_dtypes: frozenset[Any]

    def __init__(self) -> None:
        self.name, _, rest = self.schema.partition("(")
        arguments, _, _ = rest.partition(")")
        self.tensors = sum(text.strip().startswith("Tensor") for text in arguments.split(","))

    def outputs(self, *arguments: Any) -> tuple[Output, ...]:
        """Checks every law of the call and says what it returns. Raises RuntimeError."""
        raise NotImplementedError

    def torch(self, *arguments: Any) -> Any:
        """The same by torch's own functions."""
        raise NotImplementedError

    def remember(
        self, inputs: tuple[Any, ...], result: Any
    ) -> tuple[Sequence[Any], tuple[Any, ...]]:
        """(tensors, constants) that the derivative will need."""
        return inputs[: self.tensors], inputs[self.tensors :]

    def backward(
        self, needs: Sequence[bool], grad: Any, tensors: Sequence[Any], constants: Sequence[Any]
    ) -> Grads:
        """The gradient by each tensor argument, from that by the first result; None: not needed.

        Where several results are differentiable, `grad` is a tuple, with None for an unused one.
        """
        raise NotImplementedError

    def jvp(
        self, tangents: Sequence[Any], tensors: Sequence[Any], constants: Sequence[Any]
    ) -> Tensor | None:
        """The derivative of the first result along the tangents of the tensor arguments."""
        raise NotImplementedError

    def fold(
        self, batch: int, dims: Sequence[int | None], *arguments: Any
    ) -> tuple[tuple[Any, ...], Unfold]:
        """vmap: the arguments of one call that does the whole batch, and what makes the results of
        its result, stacked on axis 0.
        """
        raise NotImplementedError

    def vmap(self, batch: int, dims: Sequence[int | None], *arguments: Any) -> Any:
        """The results of a whole batch of calls, stacked on axis 0."""
        folded, unfold = self.fold(batch, dims, *arguments)
        return unfold(self.overload(*folded))

    def flops(self, *arguments: Any, **keywords: Any) -> int:
        """Floating-point operations; tensors and results come as their shapes."""
        return 0


def define(declaration: type[Op]) -> Op:
    """Makes the declared op known to fastconv and to torch."""
    op = declaration()
    OPS[op.name] = op
    if HAS_TORCH:
        _register(op)
    return op


# Tensors that are not strided: torch's own function serves them, or raises its own error.
_FOREIGN_KEYS = ("SparseCPU", "SparseCUDA", "SparseCsrCPU", "SparseCsrCUDA", "MkldnnCPU")

if HAS_TORCH:
    _LIBRARY = private.new_library("fastconv", "DEF")


def _register(op: Op) -> None:
    from fastconv.ops._autograd import eager, register_autograd, stacked

    _LIBRARY.define(op.schema)
    op.torch_dtypes = frozenset(getattr(torch, name) for name in op.dtypes)
    op.overload = getattr(torch.ops.fastconv, op.name).default
    qualified_name = f"fastconv::{op.name}"

    def fake(*arguments: Any) -> Any:
        return allocate(op, *arguments)

    def batched(info: Any, dims: Any, *arguments: Any) -> Any:
        return stacked(op.vmap(info.batch_size, dims, *arguments))

    torch.library.register_fake(qualified_name, fake, lib=_LIBRARY)
    torch.library.register_vmap(qualified_name, batched, lib=_LIBRARY)
    register_autograd(op, _LIBRARY)
    for key in _FOREIGN_KEYS:
        _LIBRARY.impl(op.name, op.torch, key)
    if op.autocast:
        _register_autocast(op)
    op.call = eager(op)


def register_flop_formulas() -> None:
    """Lets ``torch.utils.flop_counter.FlopCounterMode`` count the ops.

    Import costs 0.1 s where there is Triton.
    """
    from torch.utils.flop_counter import register_flop_formula

    for op in OPS.values():
        register_flop_formula(getattr(torch.ops.fastconv, op.name))(op.flops)


def allocate(op: Op, *arguments: Any) -> Any:
    """Checks the call; returns its results with unspecified elements."""
    results = tuple(empty(output, arguments[0]) for output in op.outputs(*arguments))
    return results if len(results) > 1 else results[0]


def _register_autocast(op: Op) -> None:
    for device in ("CPU", "CUDA"):

        def lowered(*arguments: Any, device: str = device) -> Any:
            with private.without_autocast(device):
                return op.overload(*to_autocast_dtype(arguments, device.lower()))

        _LIBRARY.impl(op.name, lowered, f"Autocast{device}")


def to_autocast_dtype(arguments: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """torch's rule: floating tensors of that device, but for float64, are cast."""
    dtype = torch.get_autocast_dtype(device)

    def lowered(value: Any) -> Any:
        eligible = (
            isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.dtype != torch.float64
            and value.device.type == device
        )
        return value.to(dtype) if eligible else value

    return tuple(cast("tuple[Any, ...]", map(lowered, arguments)))
