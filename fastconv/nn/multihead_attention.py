"""MultiheadAttention: torch.nn.MultiheadAttention with fastconv's kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from fastconv.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from torch import Tensor


class MultiheadAttention(torch.nn.MultiheadAttention):
    """A drop-in for ``torch.nn.MultiheadAttention``: same arguments, initialisation, ``state_dict``
    and masks.

    With ``need_weights=False`` no matrix of weights is ever whole. The weights themselves, nested
    tensors and wrong calls are torch's own business.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first,
        device, dtype:
            as for ``torch.nn.MultiheadAttention``.

    Shape: query [N, L, E], key [N, S, kdim], value [N, S, vdim] with batch_first, else with the
    first two axes exchanged; without N for a single sequence. The output is like query.

    Example:
        >>> import torch
        >>> import fastconv
        >>> layer = fastconv.MultiheadAttention(32, 4, batch_first=True)
        >>> x = torch.randn(2, 10, 32)
        >>> layer(x, x, x, need_weights=False)[0].shape
        torch.Size([2, 10, 32])
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output and, with ``need_weights``, the weights."""
        masks = key_padding_mask, attn_mask
        if (
            need_weights
            or not self._takes(query, key, value)
            or not self._takes_masks(query, key, *masks)
            or (is_causal and attn_mask is None)
        ):
            arguments = query, key, value, key_padding_mask, need_weights, attn_mask
            return super().forward(*arguments, average_attn_weights, is_causal)
        single = query.dim() == 2
        batch_axis = 0 if self.batch_first or single else 1
        q, k, v = (self._heads(x, batch_axis, single) for x in self._projected(query, key, value))
        k, v = self._with_more_keys(k, v)
        mask = None
        if not (is_causal and key_padding_mask is None):
            mask, is_causal = self._merged(q, k.shape[2], *masks), False
        dropout_p = self.dropout if self.training else 0.0
        output = scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
        merged = output.transpose(1, 2).flatten(2)
        if single:
            merged = merged.squeeze(0)
        elif batch_axis == 1:
            merged = merged.transpose(0, 1)
        return linear(merged, self.out_proj.weight, self.out_proj.bias), None

    def _takes(self, query: Any, key: Any, value: Any) -> bool:
        """Whether it is a plain, legal call, whatever the masks."""
        for tensor in (query, key, value):
            if not isinstance(tensor, torch.Tensor) or tensor.is_nested:
                return False
        rank = query.dim()
        sizes = query.shape[-1], key.shape[-1], value.shape[-1]
        batch_axis = 0 if self.batch_first else 1
        return (
            rank in (2, 3)
            and key.dim() == value.dim() == rank
            and sizes == (self.embed_dim, self.kdim, self.vdim)
            and key.shape[:-1] == value.shape[:-1]
            and (rank == 2 or query.shape[batch_axis] == key.shape[batch_axis])
        )

    def _takes_masks(self, query: Tensor, key: Tensor, padding: Any, attn: Any) -> bool:
        for mask in (padding, attn):
            if mask is None:
                continue
            if not isinstance(mask, torch.Tensor) or mask.is_nested:
                return False
            if mask.dtype not in (torch.bool, query.dtype):
                return False
        single = query.dim() == 2
        sequence = 0 if single or not self.batch_first else 1
        L, S = query.shape[sequence], key.shape[sequence]
        N = 1 if single else query.shape[1 - sequence]
        padded = (S,) if single else (N, S)
        return (padding is None or tuple(padding.shape) == padded) and (
            attn is None or tuple(attn.shape) in ((L, S), (N * self.num_heads, L, S))
        )

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """query, key and value, each of embed_dim features."""
        bias = self.in_proj_bias
        if self._qkv_same_embed_dim:
            weight = self.in_proj_weight
            if query is key and key is value:
                return linear(query, weight, bias).chunk(3, -1)
            weights = weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        each = zip((query, key, value), weights, biases, strict=True)
        return tuple(linear(*arguments) for arguments in each)

    def _heads(self, x: Tensor, batch_axis: int, single: bool) -> Tensor:
        """[N, H, length, features of a head], a view."""
        x = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        if single:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if batch_axis == 0 else x.permute(1, 2, 0, 3)

    def _with_more_keys(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The learned key and value, and the ones of zeros, at the end."""
        if self.bias_k is not None and self.bias_v is not None:
            shape = key.shape[0], self.num_heads, 1, self.head_dim
            more = (b.view(1, self.num_heads, 1, -1) for b in (self.bias_k, self.bias_v))
            key, value = (
                torch.cat([x, b.expand(shape)], 2) for x, b in zip((key, value), more, strict=True)
            )
        if self.add_zero_attn:
            key, value = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (key, value))
        return key, value

    def _merged(
        self, query: Tensor, keys: int, padding: Tensor | None, attn: Tensor | None
    ) -> Tensor | None:
        """One mask for both, as scaled_dot_product_attention takes it; added keys are seen."""
        if padding is None and attn is None:
            return None
        N, heads, L, _ = query.shape
        masks = []
        if padding is not None:
            masks.append(padding.view(N, 1, 1, -1))
        if attn is not None:
            single = attn.dim() == 2
            masks.append(attn[None, None] if single else attn.view(N, heads, L, -1))
        if any(mask.dtype != torch.bool for mask in masks):
            masks = [_as_addend(mask, query.dtype) for mask in masks]
        mask = masks[0] if len(masks) == 1 else masks[0] + masks[1]  # of booleans: or
        mask = torch.nn.functional.pad(mask, (0, keys - mask.shape[-1]))
        return ~mask if mask.dtype == torch.bool else mask


def _as_addend(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
