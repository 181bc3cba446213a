"""``fastconv.functional.scaled_dot_product_attention``: what users may pass, brought to the four
axes of the op.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv import _arrays, _backend
from fastconv._arguments import expect_bool, integer
from fastconv._torch_private import HAS_TORCH, torch
from fastconv.ops._check import expect

_NAME = "attention"

if HAS_TORCH:
    from torch import Tensor
    from torch.overrides import handle_torch_function
    from torch.overrides import has_torch_function_variadic as _overridden

    from fastconv.ops.attention import attention as _op

    _strided = torch.strided
    _call = _op.call
    _dtypes = _op.torch_dtypes
elif not TYPE_CHECKING:

    class Tensor:
        """Nothing is one."""

    def _overridden(*_):
        return False


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    return_lse: bool = False,
) -> Any:
    """Softmax-weighted means of values, as ``torch.nn.functional.scaled_dot_product_attention``.

    ``output[l] = sum_s softmax_s(scale * query[l] . key[s] + attn_mask[l,s]) * value[s]``, in
    memory proportional to L + S: no matrix of scores is ever whole. attn_mask has a gradient.

    Args:
        query: [..., H, L, D]; float32, float64, bfloat16 or float16.
        key: [..., H or G, S, D], of the same dtype and device; axes of size 1 broadcast.
        value: [..., H or G, S, E].
        attn_mask: broadcasts to [..., H, L, S]; of booleans (False: left out) or added to the
            products, then of query's dtype or float32.
        dropout_p: probability of a weight to be left out; torch's generator gives the seed.
        is_causal: query l sees keys 0 to l.
        scale: factor of the products; ``1 / sqrt(D)`` if None.
        enable_gqa: key and value may have fewer heads, each shared by as many heads of query.
        window_size: how many keys before and behind l + S - L query l sees; -1 for all.
        softcap: products are bounded by ``softcap * tanh(product / softcap)``; 0 for not.
        alibi_slopes: [H] or [B, H]; ``slope * |l + S - L - s|`` is subtracted.
        return_lse: return (output, lse): the logarithm of each softmax's denominator, without a
            gradient.

    Returns:
        [..., H, L, E], in the memory order of query; 0 for a query that sees no key. lse is
        [..., H, L], of float32, for float64 of float64; there -inf.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, numbers out of range.
        TypeError: an argument of the wrong type.
        NotImplementedError: an array of a dtype without a kernel.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/
    torch.nn.functional.scaled_dot_product_attention.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> q, k, v = (np.ones((1, 2, length, 4), "float32") for length in (3, 5, 5))
        >>> fastconv.functional.scaled_dot_product_attention(q, k, v).shape
        (1, 2, 3, 4)
    """
    extras = {
        "window_size": window_size,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "return_lse": return_lse,
    }
    if _overridden(query, key, value, attn_mask):
        tensors = (query, key, value, attn_mask)
        rest = (dropout_p, is_causal, scale, enable_gqa)
        function: Any = scaled_dot_product_attention
        return handle_torch_function(function, tensors, *tensors, *rest, **extras)
    if isinstance(query, Tensor):
        if not _is_served(query, key, value, attn_mask):
            _expect_plain(extras)
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
        package: Any = torch
    else:
        package = _package(query, key, value, attn_mask, alibi_slopes)
    numbers = _numbers(dropout_p, is_causal, scale, enable_gqa, window_size, softcap, return_lse)
    return _run(
        package, (query, key, value, attn_mask, alibi_slopes), numbers, enable_gqa, return_lse
    )


def _run(package: Any, tensors: Any, numbers: Any, enable_gqa: bool, return_lse: bool) -> Any:
    query, key, value, mask, slopes = tensors
    shape = query.shape
    if not len(shape) == len(key.shape) == len(value.shape) == 4 or not (
        shape[:2] == key.shape[:2] == value.shape[:2]
    ):
        query, key, value = _with_four_axes(package, query, key, value, enable_gqa)
    batch = None
    if len(shape) != 4 or tuple(query.shape[:2]) != tuple(shape[:2]):
        batch = _batch(tensors[0], tensors[1], tensors[2], enable_gqa)
    if mask is not None:
        mask = _mask(package, mask, query, key, batch)
    if slopes is not None:
        mask, slopes = _slopes(package, slopes, mask, query, key)
    seed = None
    if numbers[0] > 0:
        seed = _seed(package, query)
    output, lse = _compute(package, query, key, value, mask, slopes, seed, *numbers)
    if batch is not None:
        output = output.reshape((*batch, *output.shape[2:]))
        lse = lse.reshape((*batch, *lse.shape[2:]))
    return (output, lse) if return_lse else output


def _is_served(query: Tensor, key: Any, value: Any, mask: Any) -> bool:
    """Whether fastconv's op computes it; else torch's own function does, or raises."""
    return (
        isinstance(key, Tensor)
        and isinstance(value, Tensor)
        and (mask is None or isinstance(mask, Tensor))
        and query.dtype in _dtypes
        and query.layout is key.layout is value.layout is _strided
        and query.device.type in ("cpu", "meta")  # there are no kernels for CUDA devices yet
    )


def _expect_plain(extras: dict[str, Any]) -> None:
    plain = {"window_size": (-1, -1), "softcap": 0.0, "alibi_slopes": None, "return_lse": False}
    for name, value in extras.items():
        value = tuple(value) if isinstance(value, list) else value
        law = f"{name} only with dense floating tensors on a device of fastconv's"
        expect(value is None or value == plain[name], _NAME, law, value)


def _package(query: Any, key: Any, value: Any, *others: Any) -> Any:
    for name, each in (("query", query), ("key", key), ("value", value)):
        _arrays.expect_array(_NAME, name, each)
    for each in others:
        if each is not None:
            _arrays.expect_array(_NAME, "attn_mask", each)
    return np if isinstance(query, np.ndarray) else _arrays.namespace_of(query)


def _numbers(
    dropout_p: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
    window_size: Any,
    softcap: Any,
    return_lse: Any,
) -> tuple[Any, ...]:
    """(dropout_p, is_causal, scale, window_left, window_right, softcap), checked."""
    expect_bool(_NAME, "is_causal", is_causal)
    expect_bool(_NAME, "enable_gqa", enable_gqa)
    expect_bool(_NAME, "return_lse", return_lse)
    p, cap = _real("dropout_p", dropout_p), _real("softcap", softcap)
    expect(0 <= p <= 1, _NAME, "dropout_p in [0, 1]", p)
    expect(0 <= cap < math.inf, _NAME, "softcap in [0, inf)", cap)
    factor = None if scale is None else _real("scale", scale)
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"{_NAME}: expected window_size to be two ints, got {window_size!r}")
    left, right = (integer(_NAME, "window_size", each) for each in window_size)
    expect(min(left, right) >= -1, _NAME, "window_size >= -1", (left, right))
    most = 2**40 - 1
    return p, is_causal, factor, min(left, most), min(right, most), cap


def _real(name: str, value: Any) -> Any:
    if isinstance(value, float):
        return value
    if HAS_TORCH and isinstance(value, torch.SymFloat):
        return value
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        raise TypeError(f"{_NAME}: expected {name} to be a float, got {type(value).__name__}")
    return float(value)


def _broadcast(*shapes: Any) -> tuple[Any, ...]:
    """The common shape; sizes may be symbols."""
    rank = max(map(len, shapes))
    result = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            fits = size == 1 or result[axis] == 1 or size == result[axis]
            expect(bool(fits), _NAME, "batches and heads that broadcast", [list(s) for s in shapes])
            if size != 1:
                result[axis] = size
    return tuple(result)


def _batch(query: Any, key: Any, value: Any, enable_gqa: bool) -> tuple[Any, ...]:
    """The axes of the result before L."""
    if enable_gqa:
        outer = _broadcast(query.shape[:-3], key.shape[:-3], value.shape[:-3])
        return (*outer, query.shape[-3])
    return _broadcast(query.shape[:-2], key.shape[:-2], value.shape[:-2])


def _with_four_axes(
    package: Any, query: Any, key: Any, value: Any, enable_gqa: bool
) -> tuple[Any, Any, Any]:
    """[B, H, L, D], [B, G, S, D] and [B, G, S, E]: views where memory allows."""
    for name, each in (("query", query), ("key", key), ("value", value)):
        least = 3 if enable_gqa else 2
        rank = len(each.shape)
        expect(rank >= least, _NAME, f"{name} of at least {least} dimensions", rank)
    batch = _batch(query, key, value, enable_gqa)
    heads = batch[-1] if batch else 1
    outer = batch[:-1]
    shared = _shared_heads(query, key, value, heads, enable_gqa)
    extents = (heads, *shared)
    result = []
    for each, count in zip((query, key, value), extents, strict=True):
        tail = tuple(each.shape[-2:])
        own = each.shape[-3] if len(each.shape) > 2 else 1
        if own != count:  # of key and value, the one with fewer heads; or a query of one head
            if enable_gqa:
                each = _repeat(package, each, count // own)
            else:
                each = _expand(package, each, (*each.shape[:-3], count, *tail))
        each = _expand(package, each, (*outer, count, *tail))
        result.append(each.reshape((math.prod(outer), count, *tail)))
    return result[0], result[1], result[2]


def _shared_heads(
    query: Any, key: Any, value: Any, heads: Any, enable_gqa: bool
) -> tuple[Any, Any]:
    """How many heads key and value have for the op."""
    if len(key.shape) < 3 and len(value.shape) < 3:
        return 1, 1
    of_key = key.shape[-3] if len(key.shape) > 2 else 1
    of_value = value.shape[-3] if len(value.shape) > 2 else 1
    if enable_gqa:
        for count in (of_key, of_value):
            fits = count > 0 and heads % count == 0
            law = f"heads of key and value that divide those of query, {heads}"
            expect(bool(fits), _NAME, law, count)
        if of_key == of_value:
            return of_key, of_value
        return heads, heads
    if of_key == of_value == 1:
        return 1, 1
    return heads, heads


def _expand(package: Any, array: Any, shape: tuple[Any, ...]) -> Any:
    if tuple(array.shape) == shape:
        return array
    return array.expand(shape) if package is torch else package.broadcast_to(array, shape)


def _repeat(package: Any, array: Any, count: Any) -> Any:
    if package is torch:
        return array.repeat_interleave(count, -3)
    return package.repeat(array, count, -3)


def _mask(package: Any, mask: Any, query: Any, key: Any, batch: Any) -> Any:
    """[B or 1, H or 1, L or 1, S or 1]; booleans as bytes."""
    if str(mask.dtype).removeprefix("torch.") == "bool":
        mask = mask.view(torch.uint8) if package is torch else mask.view(package.uint8)
    elif str(mask.dtype).removeprefix("torch.") == "uint8":
        got = "uint8"
        raise RuntimeError(f"{_NAME}: expected attn_mask of booleans or floating, got {got}")
    rank = len(mask.shape)
    sizes = (*(batch or query.shape[:2]), query.shape[2], key.shape[2])
    expect(rank <= len(sizes), _NAME, f"attn_mask of at most {len(sizes)} axes", rank)
    padded = (1,) * (len(sizes) - rank) + tuple(mask.shape)
    law = f"attn_mask that broadcasts to {list(sizes)}"
    for size, extent in zip(padded, sizes, strict=True):
        fits = size == 1 or size == extent
        expect(bool(fits), _NAME, law, list(mask.shape))
    if len(sizes) == 4:
        return mask if rank == 4 else mask.reshape(padded)
    outer = padded[:-3]
    if len(sizes) < 4:
        return mask.reshape((1,) * (4 - len(sizes)) + padded)
    if any(size != 1 for size in outer):
        mask = _expand(package, mask.reshape(padded), (*sizes[:-3], *padded[-3:]))
        return mask.reshape((math.prod(sizes[:-3]), *padded[-3:]))
    return mask.reshape((1, *padded[-3:]))


def _slopes(package: Any, slopes: Any, mask: Any, query: Any, key: Any) -> tuple[Any, Any]:
    """(mask, slopes [B or 1, H]). Slopes that want a gradient become part of the mask."""
    if len(slopes.shape) == 1:
        slopes = slopes.reshape((1, slopes.shape[0]))
    if package is not torch or not (slopes.requires_grad and torch.is_grad_enabled()):
        return mask, slopes
    L, S = query.shape[2], key.shape[2]
    steps = torch.arange(S, device=query.device), torch.arange(L, device=query.device)
    bias = -slopes[..., None, None] * (steps[0] - steps[1][:, None] - (S - L)).abs()
    if mask is None:
        return bias.to(query.dtype), None
    if mask.dtype == torch.uint8:
        return torch.where(mask != 0, bias, -math.inf).to(query.dtype), None
    return (mask + bias).to(mask.dtype), None


def _seed(package: Any, query: Any) -> Any:
    if package is torch:
        return torch.randint(2**62, (1,), device=query.device)
    return package.asarray(np.random.randint(2**62, size=1, dtype=np.int64))


def _compute(package: Any, *arguments: Any) -> Any:
    if package is torch:
        return _call(*arguments)
    core = _backend.array_core
    if core is not None and _arrays.core_serves(arguments[0]):
        return core.attention(*arguments)
    return _arrays.call(_NAME, *arguments)
