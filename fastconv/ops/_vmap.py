"""Batching rules: a batch of calls as one call. B is the batch, the other letters are those of
conv2d.

Where images are many, B is folded into N. Where weights are many, into channels: B problems of G
groups are one problem of B*G groups. Rules only reshape; who calls them runs the op between folding
and unfolding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fastconv.ops._define import Unfold

Folded = tuple[tuple[Any, ...], "Unfold"]


def stack(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    """[B, ...], repeating by a view what is not batched."""
    return (
        tensor.unsqueeze(0).expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    )


def _images(tensor: Tensor, dim: int | None, batch: int) -> tuple[Tensor, bool]:
    """[B, N, C, H, W], and whether it was unbatched images [C, H, W] before."""
    stacked = stack(tensor, dim, batch)
    return (stacked.unsqueeze(1), True) if stacked.dim() == 4 else (stacked, False)


def _into_n(images: Tensor) -> Tensor:
    """[B, N, C, H, W] as [B*N, C, H, W]."""
    return images.flatten(0, 1)


def _into_channels(images: Tensor) -> Tensor:
    """[B, N, C, H, W] as [N, B*C, H, W]."""
    return images.transpose(0, 1).flatten(1, 2)


def _from_n(batch: int, single: bool) -> Unfold:
    def unfold(images: Tensor) -> Tensor:
        stacked = images.reshape(batch, images.shape[0] // batch, *images.shape[1:])
        return stacked.squeeze(1) if single else stacked

    return unfold


def _from_channels(batch: int, single: bool) -> Unfold:
    def unfold(images: Tensor) -> Tensor:
        n, channels, h, w = images.shape
        stacked = images.reshape(n, batch, channels // batch, h, w).transpose(0, 1)
        return stacked.squeeze(1) if single else stacked

    return unfold


def _geometry(constants: Sequence[Any]) -> tuple[tuple[Any, ...], int]:
    """(stride, padding, dilation) and groups, with the schema's defaults."""
    all_four = tuple(constants) + (1, 0, 1, 1)[len(constants) :]
    return all_four[:3], all_four[3]


def fold_conv2d(
    batch: int,
    dims: Sequence[int | None],
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *constants: Any,
) -> Folded:
    """conv2d over a batch of images, weights, biases, or any of them."""
    window, groups = _geometry(constants)
    tensors, groups, unfold = _fold_window(batch, dims, x, w, bias, groups, 0)
    return (*tensors, *window, groups), unfold


def fold_conv_transpose2d(
    batch: int,
    dims: Sequence[int | None],
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *constants: Any,
) -> Folded:
    """conv_transpose2d over a batch of images, weights, biases, or any of them."""
    all_five: tuple[Any, ...] = tuple(constants) + (1, 0, 0, 1, 1)[len(constants) :]
    stride, padding, behind, groups, dilation = all_five
    tensors, groups, unfold = _fold_window(batch, dims, x, w, bias, groups, 1)
    return (*tensors, stride, padding, behind, groups, dilation), unfold


def _fold_window(
    batch: int,
    dims: Sequence[int | None],
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    groups: int,
    output_axis: int,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], int, Unfold]:
    """Images, weights and biases of one call, its groups, and what unfolds its result.

    The weight's output channels are on ``output_axis``.
    """
    images, single = _images(x, dims[0], batch)
    biases = None if bias is None else stack(bias, dims[2], batch)
    if dims[1] is None:
        alike = bias is not None and dims[2] is None
        unfold = _from_n(batch, single)
        folded = _into_n(images), w, bias if alike else None
        if biases is None or alike:
            return folded, groups, unfold
        each = biases[:, :, None, None] if single else biases[:, None, :, None, None]
        return folded, groups, lambda output: unfold(output) + each
    flat = None if biases is None else biases.flatten()
    unfold = _from_channels(batch, single)
    if dims[0] is None and groups == 1:  # the same image for all: more output channels
        weights = w.movedim(dims[1], output_axis).flatten(output_axis, output_axis + 1)
        return (images[0], weights, flat), 1, unfold
    weights = w.movedim(dims[1], 0).flatten(0, 1)
    return (_into_channels(images), weights, flat), batch * groups, unfold


def fold_input_grad(
    batch: int,
    dims: Sequence[int | None],
    grad: Tensor,
    w: Tensor,
    input_size: Sequence[int],
    *constants: Any,
) -> Folded:
    """conv2d_input_grad over a batch of gradients, weights, or both."""
    window, groups = _geometry(constants)
    grads, single = _images(grad, dims[0], batch)
    n, channels, height, width = (1, *input_size)[-4:]
    if dims[1] is None:
        size = (batch * n, channels, height, width)
        return (_into_n(grads), w, size, *window, groups), _from_n(batch, single)
    weights = w.movedim(dims[1], 0).flatten(0, 1)
    size = (n, batch * channels, height, width)
    arguments = (_into_channels(grads), weights, size, *window, batch * groups)
    return arguments, _from_channels(batch, single)


def fold_weight_grad(
    batch: int,
    dims: Sequence[int | None],
    grad: Tensor,
    x: Tensor,
    weight_size: Sequence[int],
    *constants: Any,
) -> Folded:
    """conv2d_weight_grad over a batch of gradients, images, or both (per-sample gradients)."""
    window, groups = _geometry(constants)
    k, *rest = weight_size
    grads, _ = _images(grad, dims[0], batch)
    images, _ = _images(x, dims[1], batch)
    size = (batch * k, *rest)
    arguments = (_into_channels(grads), _into_channels(images), size, *window, batch * groups)
    return arguments, lambda result: result.reshape(batch, k, *rest)


def fold_planes(
    batch: int, dims: Sequence[int | None], tensors: Sequence[Tensor]
) -> tuple[list[Tensor], Unfold]:
    """Tensors [N, C, H, W] or [C, H, W] whose planes do not meet, with B folded into N."""
    each = [_images(tensor, dim, batch) for tensor, dim in zip(tensors, dims, strict=False)]
    unfold = _from_n(batch, each[0][1])

    def unfold_all(result: Any) -> Any:
        return tuple(map(unfold, result)) if isinstance(result, tuple) else unfold(result)

    return [_into_n(images) for images, _ in each], unfold_all
