"""The three forms in which torch wants a derivative, made from one declaration.

* ``register_autograd``: for torch.compile, torch.export and callers of ``torch.ops.fastconv.*``.
* A Function with ``forward(ctx)``: for plain eager calls, 3 times cheaper (torch 2.13).
* A Function with ``setup_context``, ``jvp`` and ``vmap``: for torch.func and forward-mode AD.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastconv import _torch_private as private
from fastconv._torch_private import torch

if TYPE_CHECKING:
    from fastconv.ops._define import Op


def eager(op: Op) -> Callable[..., Any]:
    """The function that Python code calls for ``op``.

    Its first lines run on every call: each costs 20 to 70 ns.
    """
    apply = _eager_function(op).apply
    transformed = _transformed(op)
    overload, raw = op.overload, private.raw_call(op.overload)
    is_compiling = torch.compiler.is_dynamo_compiling
    is_grad_enabled, is_inference = torch.is_grad_enabled, torch.is_inference_mode_enabled
    functorch_is_active = private.functorch_is_active
    forward_ad, level = private.FORWARD_AD, private.LEVEL
    any_requires_grad, below_autograd = private.any_requires_grad, private.BelowAutograd
    is_tracing, dispatch_modes = private.is_tracing, private.dispatch_modes
    autocast_is_active = private.autocast_is_active

    def call(*arguments: Any) -> Any:
        if is_compiling():
            return overload(*(_known(each) for each in arguments))
        if is_tracing():
            return overload(*arguments)
        if functorch_is_active() or forward_ad[level] >= 0:
            return transformed(*_autocast(op, arguments))
        if is_inference():  # records nothing, whether gradients are enabled or not
            return raw(*arguments)
        if is_grad_enabled() and any_requires_grad(*arguments):
            if autocast_is_active() or dispatch_modes():
                return overload(*arguments)
            return apply(*arguments)
        with below_autograd():
            return raw(*arguments)

    return call


def _transformed(op: Op) -> Callable[..., Any]:
    """What torch.func and forward-mode differentiation see."""
    if op.transforms_by_torch:
        return op.torch
    return _transformable_function(op).apply if op.training is None else _first_of(op.training)


def _known(argument: Any) -> Any:
    """A constant as its value, where torch.compile holds a symbol: as in torch, windows and strides
    are part of a graph. Sizes, which come as lists or torch.Size, stay symbols.
    """
    if type(argument) is int:
        return operator.index(argument)
    if type(argument) is tuple:
        return tuple(operator.index(each) for each in argument)
    return argument


def _first_of(op: Op) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return op.call(*arguments)[0]

    return call


def _autocast(op: Op, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The cast that the dispatcher would do, before the tensors are saved for the derivative."""
    from fastconv.ops._define import to_autocast_dtype

    device = arguments[0].device.type
    if op.autocast and device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return to_autocast_dtype(arguments, device)
    return arguments


def stacked(result: Any) -> tuple[Any, Any]:
    """What a vmap rule returns: the result, and that its batch is axis 0."""
    return result, ((0,) * len(result) if isinstance(result, tuple) else 0)


def register_autograd(op: Op, library: Any) -> None:
    """The derivative of ``torch.ops.fastconv.<op>``."""
    torch.library.register_autograd(
        f"fastconv::{op.name}", _backward(op), setup_context=_setup_context(op), lib=library
    )


def _setup_context(op: Op) -> Callable[[Any, Any, Any], None]:
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        tensors, ctx.constants = op.remember(inputs, output)
        ctx.save_for_backward(*tensors)
        if op.integer_outputs:
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*(output[i] for i in op.integer_outputs))

    return setup_context


def _backward(op: Op) -> Callable[..., Any]:
    autocast_is_active = private.autocast_is_active
    several = op.differentiable_outputs if op.differentiable_outputs > 1 else 0

    def backward(ctx: Any, grad: Any, *others: Any) -> Any:
        needs = ctx.needs_input_grad
        if several:
            grad = (grad, *others[: several - 1])
            if all(each is None for each in grad):
                return (None,) * len(needs)
        elif grad is None:
            return (None,) * len(needs)
        if autocast_is_active():  # a derivative is of the dtype of its forward pass
            with private.without_autocast("CPU"), private.without_autocast("CUDA"):
                grads = op.backward(needs, grad, ctx.saved_tensors, ctx.constants)
        else:
            grads = op.backward(needs, grad, ctx.saved_tensors, ctx.constants)
        return *grads, *(None,) * (len(needs) - len(grads))

    return backward


def _eager_function(op: Op) -> Any:
    run = op.training or op
    setup_context, remember = _setup_context(op), run.remember
    raw, below_autograd = private.raw_call(run.overload), private.BelowAutograd
    has_integer_outputs, returns_first = bool(op.integer_outputs), run is not op

    def forward(ctx: Any, *arguments: Any) -> Any:
        with below_autograd():
            result = raw(*arguments)
        if has_integer_outputs:
            setup_context(ctx, arguments, result)
        else:  # the same, without the call
            tensors, ctx.constants = remember(arguments, result)
            ctx.save_for_backward(*tensors)
        return result[0] if returns_first else result

    members = {"forward": staticmethod(forward), "backward": staticmethod(_backward(run))}
    return type(f"{op.name}_function", (private.plain_function(),), members)


def _transformable_function(op: Op) -> Any:
    remember_for_backward = _setup_context(op)
    raw, below_autograd = private.raw_call(op.overload), private.BelowAutograd

    def forward(*arguments: Any) -> Any:
        with below_autograd():  # every transform has been peeled off
            return raw(*arguments)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        remember_for_backward(ctx, inputs, output)
        tensors, _ = op.remember(inputs, output)
        ctx.save_for_forward(*tensors)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        tangent = op.jvp(tangents[: op.tensors], ctx.saved_tensors, ctx.constants)
        return (tangent, *(None for _ in op.integer_outputs)) if op.integer_outputs else tangent

    def vmap(info: Any, dims: Any, *arguments: Any) -> Any:
        folded, unfold = op.fold(info.batch_size, dims, *arguments)
        return stacked(unfold(op.call(*folded)))

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(_backward(op)),
        "jvp": staticmethod(jvp),
        "vmap": staticmethod(vmap),
    }
    return type(f"{op.name}_transformable", (torch.autograd.Function,), members)
