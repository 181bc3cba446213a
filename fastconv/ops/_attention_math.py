"""attention in torch's own functions, a whole matrix of scores at a time: what derivatives of
derivatives and forward-mode tangents are made of. The letters are those of the reference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from fastconv._torch_private import torch
from fastconv.reference.attention import dropout_threshold

if TYPE_CHECKING:
    from torch import Tensor

_WORD = 0xFFFFFFFF


class Rules(NamedTuple):
    """The constants of a call, with the schema's defaults."""

    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0

    def scale_of(self, D: Any) -> Any:
        """The factor of the products."""
        if self.scale is not None:
            return self.scale
        return 1 / math.sqrt(D) if D else 0.0


class Terms(NamedTuple):
    """What output and gradients are made of, in float32 or float64."""

    query: Tensor
    key: Tensor  # [B, H, S, D], like value: repeated where heads share it
    value: Tensor
    weights: Tensor  # [B, H, L, S]
    kept: Tensor | None  # what dropout multiplies the weights by
    slope: Tensor | float  # of a score by its product
    output: Tensor
    lse: Tensor


def terms(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    dropout_seed: Tensor | None,
    rules: Rules,
) -> Terms:
    """The forward pass."""
    q, k, v = (widened(each) for each in (query, key, value))
    heads, length = q.shape[1], q.shape[2]
    k, v = _repeated(k, heads), _repeated(v, heads)
    products = q @ k.mT
    scale = rules.scale_of(q.shape[3])
    scores, slope = products * scale, scale
    if rules.softcap > 0:
        capped = torch.tanh(scores / rules.softcap)
        scores, slope = capped * rules.softcap, (1 - capped * capped) * scale
    scores = _masked(scores, length, k.shape[2], attn_mask, alibi_slopes, rules)
    best = scores.detach().amax(-1, keepdim=True) if k.shape[2] else scores.new_zeros(1)
    best = torch.where(best == -math.inf, 0.0, best)
    exps = torch.exp(scores - best)
    sums = exps.sum(-1, keepdim=True)
    weights = exps / torch.where(sums == 0, 1.0, sums)
    kept = None
    if dropout_seed is not None and rules.dropout_p > 0:
        kept = _kept(dropout_seed, rules.dropout_p, weights)
    output = (weights if kept is None else weights * kept) @ v
    return Terms(q, k, v, weights, kept, slope, output, (best + sums.log()).squeeze(-1))


def gradients(grad: Tensor, given: Terms, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those by query, key, value and scores."""
    grad = widened(grad)
    weights, kept = given.weights, given.kept
    by_weight = grad @ given.value.mT
    if kept is not None:
        by_weight = by_weight * kept
    by_score = weights * (by_weight - (weights * by_weight).sum(-1, keepdim=True))
    by_product = by_score * given.slope
    by_value = (weights if kept is None else weights * kept).mT @ grad
    by_key = by_product.mT @ given.query
    return by_product @ given.key, _grouped(by_key, groups), _grouped(by_value, groups), by_score


def tangent(tangents: Any, given: Terms) -> Tensor | None:
    """Of the output, along those of query, key, value and attn_mask."""
    dq, dk, dv, dmask = (None if each is None else widened(each) for each in tangents)
    heads, weights = given.query.shape[1], given.weights
    dscores: Any = None
    if dq is not None:
        dscores = dq @ given.key.mT * given.slope
    if dk is not None:
        more = given.query @ _repeated(dk, heads).mT * given.slope
        dscores = more if dscores is None else dscores + more
    if dmask is not None:
        dscores = dmask.expand_as(weights) if dscores is None else dscores + dmask
    parts: list[Tensor] = []
    if dscores is not None:
        dweights = weights * (dscores - (weights * dscores).sum(-1, keepdim=True))
        parts.append((dweights if given.kept is None else dweights * given.kept) @ given.value)
    if dv is not None:
        all_kept = weights if given.kept is None else weights * given.kept
        parts.append(all_kept @ _repeated(dv, heads))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def widened(tensor: Tensor) -> Tensor:
    """Halves as float32."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def summed_to(tensor: Tensor, like: Tensor) -> Tensor:
    """Summed over the axes along which ``like`` is of size 1, as ``like`` is typed."""
    axes = [axis for axis in range(4) if like.shape[axis] == 1 and tensor.shape[axis] != 1]
    return (tensor.sum(axes, keepdim=True) if axes else tensor).to(like.dtype)


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    return tensor.repeat_interleave(heads // tensor.shape[1], 1) if heads else tensor[:, :0]


def _grouped(tensor: Tensor, groups: int) -> Tensor:
    B, H, S, D = tensor.shape
    return tensor.reshape(B, groups, H // max(groups, 1), S, D).sum(2)


def _masked(
    scores: Tensor, L: int, S: int, mask: Tensor | None, slopes: Tensor | None, rules: Rules
) -> Tensor:
    device = scores.device
    distance = torch.arange(S, device=device) - torch.arange(L, device=device)[:, None]
    if slopes is not None:
        slopes = slopes.to(scores.dtype)[..., None, None]
        scores = scores - slopes * (distance - (S - L)).abs()
    if mask is not None and mask.dtype != torch.uint8:
        scores = scores + mask.to(scores.dtype)
    elif mask is not None:
        scores = torch.where(mask != 0, scores, -math.inf)
    if rules.is_causal:
        scores = torch.where(distance <= 0, scores, -math.inf)
    if rules.window_left >= 0:
        scores = torch.where(distance >= S - L - rules.window_left, scores, -math.inf)
    if rules.window_right >= 0:
        scores = torch.where(distance <= S - L + rules.window_right, scores, -math.inf)
    return scores


def _kept(seed: Tensor, p: float, weights: Tensor) -> Tensor:
    if p >= 1:
        return torch.zeros_like(weights)
    B, H, L, S = weights.shape
    device = weights.device
    rows = _mix64(seed.reshape(()), torch.arange(B * H * L, device=device))
    low, high = (rows & _WORD)[:, None], (rows >> 32 & _WORD)[:, None]
    x = torch.arange(S, device=device) * 0x9E3779B1 & _WORD ^ low
    x = (x ^ x >> 16) * 0x85EBCA6B + high & _WORD
    x = (x ^ x >> 13) * 0xC2B2AE35 & _WORD
    x = x ^ x >> 16
    return (x >= dropout_threshold(p)).to(weights.dtype).reshape(B, H, L, S) / (1 - p)


def _mix64(seed: Tensor, number: Tensor) -> Tensor:
    """splitmix64 in int64, whose products wrap."""
    x = seed + (number + 1) * (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ _right(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _right(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _right(x, 31)


def _right(x: Tensor, bits: int) -> Tensor:
    return x >> bits & (1 << 64 - bits) - 1
