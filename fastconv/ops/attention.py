"""attention as torch ops: output and lse, the gradients by query, key and value, and that by the
mask.

    d attention(q, k, v, mask) = (*attention_backward(g, q, k, v, ...), attention_mask_grad(g, ...))

Where a graph of the gradient is asked for, it is made of torch's own functions: see
``_attention_math.py``.

Shapes: q [B, H, L, D], k [B, G, S, D], v [B, G, S, E], mask [B|1, H|1, L|1, S|1]; output and g
[B, H, L, E], lse [B, H, L]. Memory order is that of q: heads before queries, or queries before
heads. A mask is uint8 (0: left out) or floating (added).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fastconv._torch_private import torch
from fastconv.ops._attention_math import Rules, gradients, summed_to, tangent, terms
from fastconv.ops._check import (
    FLOATING,
    Output,
    dtype_name,
    expect,
    expect_alike,
    expect_dtype,
    expect_rank,
    expect_shape,
)
from fastconv.ops._define import Grads, Op, Unfold, define
from fastconv.ops._vmap import stack

if TYPE_CHECKING:
    from torch import Tensor

_REST = (
    "Tensor? attn_mask=None, Tensor? alibi_slopes=None, Tensor? dropout_seed=None, "
    "float dropout_p=0.0, bool is_causal=False, float? scale=None, int window_left=-1, "
    "int window_right=-1, float softcap=0.0"
)
_GRADIENT = "Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse"


def heads_last(array: Any) -> bool:
    """Whether the heads of a query lie beside each other: [B, L, H, D] in memory."""
    if hasattr(array, "stride"):
        return bool(array.stride(1) < array.stride(2))
    return bool(array.strides[1] < array.strides[2])


def _order(array: Any) -> tuple[int, ...]:
    return (0, 2, 1, 3) if heads_last(array) else (0, 1, 2, 3)


def _lse_dtype(query: Any) -> Any:
    name = "float64" if dtype_name(query) == "float64" else "float32"
    return getattr(torch, name) if torch else name


def check_call(
    op: str,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    slopes: Any = None,
    seed: Any = None,
    *constants: Any,
) -> None:
    """The laws of every call."""
    rules = Rules(*constants)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        expect_rank(op, name, tensor.shape, 4)
    expect_dtype(op, FLOATING, query)
    expect_alike(op, "key", key, "query", query)
    expect_alike(op, "value", value, "query", query)
    (B, H, L, D), (_, G, S, _) = query.shape, key.shape
    expect_shape(op, "key", key.shape, (B, G, S, D))
    expect_shape(op, "value", value.shape, (B, G, S, value.shape[3]))
    expect(G > 0 and H % G == 0 if H else G == 0, op, f"heads of key that divide {H}", G)
    if mask is not None:
        expect_rank(op, "attn_mask", mask.shape, 4)
        for axis, extent in enumerate((B, H, L, S)):
            got = mask.shape[axis]
            fits = got == extent or got == 1
            expect(fits, op, f"attn_mask that broadcasts to {[B, H, L, S]}", list(mask.shape))
        allowed = ("uint8", "float32", dtype_name(query))
        law = f"attn_mask of dtype uint8, float32 or {allowed[2]}"
        expect(dtype_name(mask) in allowed, op, law, dtype_name(mask))
    if slopes is not None:
        expect_rank(op, "alibi_slopes", slopes.shape, 2)
        expect_dtype(op, FLOATING, slopes)
        fits = slopes.shape[0] in (1, B) and slopes.shape[1] == H
        expect(fits, op, f"alibi_slopes of shape [1 or {B}, {H}]", list(slopes.shape))
    expect(0 <= rules.dropout_p <= 1, op, "dropout_p in [0, 1]", rules.dropout_p)
    if rules.dropout_p > 0:
        expect(seed is not None, op, "a dropout_seed with dropout_p > 0", "none")
    if seed is not None:
        expect_shape(op, "dropout_seed", seed.shape, (1,))
        expect(dtype_name(seed) == "int64", op, "dropout_seed of int64", dtype_name(seed))
    expect(rules.softcap >= 0, op, "softcap >= 0", rules.softcap)
    for name in ("window_left", "window_right"):
        bound = getattr(rules, name)
        expect(-1 <= bound < 2**40, op, f"{name} in [-1, 2^40)", bound)


class Attention(Op):
    """Softmax-weighted means of the values, and the logarithms of the softmaxes' denominators."""

    family = "attention"
    schema = (
        f"attention(Tensor query, Tensor key, Tensor value, {_REST}) -> (Tensor output, Tensor lse)"
    )
    dtypes = FLOATING
    autocast = True
    integer_outputs: ClassVar[tuple[int, ...]] = (1,)

    def outputs(self, query: Any, key: Any, value: Any, *rest: Any) -> tuple[Output, ...]:
        check_call(self.name, query, key, value, *rest)
        shape = tuple(query.shape[:3])
        output = Output((*shape, value.shape[3]), order=_order(query))
        return output, Output(shape, dtype=_lse_dtype(query))

    def torch(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        dropout_seed: Tensor | None = None,
        *constants: Any,
    ) -> Any:
        given = terms(query, key, value, attn_mask, alibi_slopes, dropout_seed, Rules(*constants))
        return given.output.to(query.dtype), given.lse

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        optional = (*inputs[3:6], None, None, None)[:3]
        return (*inputs[:3], *result, *optional), inputs[6:]

    def backward(self, needs: Any, grad: Tensor, tensors: Any, constants: Any) -> Grads:
        q, k, v, output, lse, mask, slopes, seed = tensors
        needs_mask = len(needs) > 3 and needs[3]
        by_mask = None
        if torch.is_grad_enabled():  # a graph of the gradient
            given = terms(q, k, v, mask, slopes, seed, Rules(*constants))
            by_q, by_k, by_v, by_score = gradients(grad, given, k.shape[1])
            if needs_mask:
                by_mask = summed_to(by_score, mask)
            all_three: Grads = (by_q.to(q.dtype), by_k.to(k.dtype), by_v.to(v.dtype))
        else:
            rest = (grad, q, k, v, output, lse, mask, slopes, seed, *constants)
            all_three = (None, None, None)
            if any(needs[:3]):
                all_three = attention_backward.call(*rest)
            if needs_mask:
                by_mask = attention_mask_grad.call(*rest)
        kept = (each if need else None for each, need in zip(all_three, needs[:3], strict=True))
        return (*kept, by_mask, None, None)[: len(needs)]

    def jvp(self, tangents: Any, tensors: Any, constants: Any) -> Tensor | None:
        q, k, v, _, _, mask, slopes, seed = tensors
        given = terms(q, k, v, mask, slopes, seed, Rules(*constants))
        result = tangent((*tangents, None)[:4], given)
        return None if result is None else result.to(q.dtype)

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        return _fold(batch, dims, arguments, 3)

    def flops(self, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        B, H, L, D = query
        return int(2 * B * H * L * key[2] * (D + value[3]))


def _fold(
    batch: int, dims: Any, arguments: tuple[Any, ...], required: int
) -> tuple[tuple[Any, ...], Unfold]:
    """The batch of calls is folded into B. Dropout is that of one call of that B."""

    def unfold(result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(map(unfold, result))
        return result.reshape(batch, result.shape[0] // batch, *result.shape[1:])

    folded: list[Any] = []
    each = zip(arguments[: required + 3], (*dims, *(None,) * 9), strict=False)
    extent = arguments[required - 3].shape[0 if dims[required - 3] != 0 else 1]
    for place, (value, dim) in enumerate(each):
        if value is None:
            folded.append(None)
        elif place == required + 2:  # the seed
            folded.append(value.select(dim, 0) if dim is not None else value)
        elif place < required or dim is not None or value.shape[0] != 1:
            stacked = stack(value, dim, batch)
            if place >= required and stacked.shape[1] == 1 and extent != 1:
                stacked = stacked.expand(batch, extent, *stacked.shape[2:])
            folded.append(stacked.flatten(0, 1))
        else:
            folded.append(value)
    return (*folded, *arguments[required + 3 :]), unfold


class _Gradient(Op):
    """What both gradients are made of."""

    family = "attention"
    dtypes = FLOATING

    def check(self, grad: Any, q: Any, k: Any, v: Any, output: Any, lse: Any, *rest: Any) -> None:
        check_call(self.name, q, k, v, *rest)
        for name, tensor in (("grad_output", grad), ("output", output)):
            expect_shape(self.name, name, tensor.shape, (*q.shape[:3], v.shape[3]))
            expect_alike(self.name, name, tensor, "query", q)
        expect_shape(self.name, "lse", lse.shape, q.shape[:3])
        wanted = "float64" if dtype_name(q) == "float64" else "float32"
        expect(dtype_name(lse) == wanted, self.name, f"lse of {wanted}", dtype_name(lse))

    def by_torch(self, *arguments: Any) -> tuple[Any, ...]:
        grad, q, k, v = arguments[:4]
        mask, slopes, seed = (*arguments[6:9], None, None, None)[:3]
        constants = arguments[9:]
        given = terms(q, k, v, mask, slopes, seed, Rules(*constants))
        return gradients(grad, given, k.shape[1])

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        return _fold(batch, dims, arguments, 6)


class AttentionBackward(_Gradient):
    """The gradients by query, key and value."""

    schema = f"attention_backward({_GRADIENT}, {_REST}) -> (Tensor, Tensor, Tensor)"

    def outputs(self, *arguments: Any) -> tuple[Output, ...]:
        self.check(*arguments)
        return tuple(Output(tuple(each.shape), order=_order(each)) for each in arguments[1:4])

    def torch(self, *arguments: Any) -> Any:
        return tuple(each.to(arguments[1].dtype) for each in self.by_torch(*arguments)[:3])

    def flops(self, grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        B, H, L, D = query
        return int(2 * B * H * L * key[2] * (3 * D + 2 * value[3]))


class AttentionMaskGrad(_Gradient):
    """The gradient by a floating attn_mask."""

    schema = f"attention_mask_grad({_GRADIENT}, {_REST}) -> Tensor"

    def outputs(self, *arguments: Any) -> tuple[Output, ...]:
        self.check(*arguments)
        mask = (*arguments, None)[6]
        expect(mask is not None, self.name, "an attn_mask", "none")
        expect_dtype(self.name, FLOATING, mask)
        return (Output(tuple(mask.shape), dtype=mask.dtype),)

    def torch(self, *arguments: Any) -> Any:
        return summed_to(self.by_torch(*arguments)[3], arguments[6])

    def fold(self, batch: int, dims: Any, *arguments: Any) -> tuple[tuple[Any, ...], Unfold]:
        mask = arguments[6]
        dims = (*dims, *(None,) * 9)
        if dims[6] is None:  # every call of the batch has a gradient of its own
            dims = (*dims[:6], 0, *dims[7:])
            mask = mask.expand(batch, *mask.shape)
        folded, unfold = _fold(batch, dims, (*arguments[:6], mask, *arguments[7:]), 6)
        single = mask.shape[1 if dims[6] == 0 else 0] == 1

        def unfold_mask(result: Any) -> Any:
            stacked = unfold(result)
            return stacked.sum(1, keepdim=True) if single else stacked

        return folded, unfold_mask

    def flops(self, grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        B, H, L, D = query
        return int(2 * B * H * L * key[2] * (D + value[3]))


attention = define(Attention)
attention_backward = define(AttentionBackward)
attention_mask_grad = define(AttentionMaskGrad)
