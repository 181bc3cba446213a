"""The functions of ``fastconv.functional`` that find maxima of windows of no fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastconv import _arrays, _backend
from fastconv._arguments import adaptive_size
from fastconv._torch_private import HAS_TORCH, torch

if HAS_TORCH:
    from torch import Tensor
    from torch.overrides import handle_torch_function
    from torch.overrides import has_torch_function_unary as _overridden

    from fastconv.ops.adaptive_max_pool2d import adaptive_max_pool2d as _values
    from fastconv.ops.adaptive_max_pool2d import adaptive_max_pool2d_with_indices as _with_indices

    _strided = torch.strided
    _is_compiling = torch.compiler.is_dynamo_compiling
elif not TYPE_CHECKING:

    class Tensor:
        """Nothing is one."""

    def _overridden(_):
        return False


def adaptive_max_pool2d(input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """The largest elements of windows that cover the input evenly, as
    ``torch.nn.functional.adaptive_max_pool2d``.

    ``output[n,c,p,q]`` is the largest element of the rows ``floor(p * H / P)`` to
    ``ceil((p + 1) * H / P)``, the latter excluded, and columns likewise. An output size of 1 is the
    largest element of a plane. A NaN is larger than everything; of equal elements the first is
    taken.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16.
        output_size: int or (P, Q), each >= 0; None in a pair keeps the input's extent.
        return_indices: return (output, indices): the position ``h * W + w`` of what was taken.

    Returns:
        [N, C, P, Q] or [C, P, Q]; channels_last if input is.

    Raises:
        RuntimeError: a shape that does not fit, numbers out of range.
        ValueError: as many output sizes as the input has dimensions.
        TypeError: an argument of the wrong type.
        NotImplementedError: a dtype without a kernel.

    Source of the formula:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveMaxPool2d.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
        >>> fastconv.functional.adaptive_max_pool2d(image, (1, None)).tolist()
        [[[[12.0, 13.0, 14.0, 15.0]]]]
    """
    if _overridden(input):
        return handle_torch_function(
            adaptive_max_pool2d, (input,), input, output_size, return_indices
        )
    if return_indices:
        return adaptive_max_pool2d_with_indices(input, output_size)
    if isinstance(input, Tensor):
        if not _is_served(input):
            return torch.nn.functional.adaptive_max_pool2d(input, output_size)
        size = adaptive_size("adaptive_max_pool2d", output_size, input.shape)
        # In a compiled graph the op itself would have to look for the indices again.
        if _is_compiling() and input.requires_grad and torch.is_grad_enabled():
            return _with_indices.call(input, size)[0]
        return _values.call(input, size)
    return _of_array("adaptive_max_pool2d", input, output_size)


def adaptive_max_pool2d_with_indices(
    input: Any, output_size: Any, return_indices: bool = False
) -> Any:
    """:func:`adaptive_max_pool2d` and the indices, as
    ``torch.nn.functional.adaptive_max_pool2d_with_indices``.

    Args:
        input, output_size: as for :func:`adaptive_max_pool2d`.
        return_indices: has no effect, as in torch.

    Returns:
        The output and the int64 indices, both [N, C, P, Q] or [C, P, Q].

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as for
            :func:`adaptive_max_pool2d`.

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> image = np.arange(16.0).reshape(1, 4, 4)
        >>> fastconv.functional.adaptive_max_pool2d_with_indices(image, 1)[1].tolist()
        [[[15]]]
    """
    if _overridden(input):
        return handle_torch_function(adaptive_max_pool2d_with_indices, (input,), input, output_size)
    name = "adaptive_max_pool2d_with_indices"
    if isinstance(input, Tensor):
        if not _is_served(input):
            return torch.nn.functional.adaptive_max_pool2d_with_indices(input, output_size)
        return _with_indices.call(input, adaptive_size(name, output_size, input.shape))
    return _of_array(name, input, output_size)


def _is_served(input: Tensor) -> bool:
    """Whether fastconv's ops compute it; else torch's own function does."""
    return (
        input.dtype in _values.torch_dtypes
        and input.layout is _strided
        and (input.is_cpu or _backend.has_kernels(input))
    )


def _of_array(name: str, input: Any, output_size: Any) -> Any:
    _arrays.expect_array(name, "input", input)
    size = adaptive_size(name, output_size, input.shape)
    core = _backend.array_core
    if core is not None and _arrays.core_serves(input):
        return getattr(core, name)(input, size)
    return _arrays.call(name, input, size)
