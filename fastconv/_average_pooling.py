"""The functions of ``fastconv.functional`` that average windows."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from numpy import ndarray

from fastconv import _arrays, _backend
from fastconv._arguments import adaptive_size, avg_pool2d_window
from fastconv._torch_private import HAS_TORCH, torch

# Bound once: looking names up is a tenth of what a call costs.
_ZERO, _LARGEST = 0, 2**31 - 1
if HAS_TORCH:
    from torch import Tensor
    from torch.overrides import handle_torch_function
    from torch.overrides import has_torch_function_unary as _overridden

    from fastconv.ops.adaptive_avg_pool2d import adaptive_avg_pool2d as _adaptive_avg_pool2d_op
    from fastconv.ops.avg_pool2d import avg_pool2d as _avg_pool2d_op

    _strided = torch.strided
    _avg_pool2d = _avg_pool2d_op.call
    _adaptive_avg_pool2d = _adaptive_avg_pool2d_op.call
    _dtypes = _avg_pool2d_op.torch_dtypes
elif not TYPE_CHECKING:

    class Tensor:
        """Nothing is one."""

    def _overridden(_):
        return False


def _is_served(input: Tensor) -> bool:
    """Whether fastconv's ops compute it; else torch's own function does."""
    return (
        input.dtype in _dtypes
        and input.layout is _strided
        and (input.is_cpu or _backend.has_kernels(input))
    )


def avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of every window, as ``torch.nn.functional.avg_pool2d``.

    ``output[n,c,p,q] = sum_{r,s} input[n,c,h,w] / divisor`` with ``h = p * stride - padding + r``
    (``w`` likewise) inside the input. float16 and bfloat16 are summed in float32. A NaN or infinity
    reaches those outputs alone whose window holds it.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16.
        kernel_size: int or (rows, columns).
        stride: int or (rows, columns); ``kernel_size`` if None or empty.
        padding: int or (rows, columns), at most half of ``kernel_size``.
        ceil_mode: round the output's height and width up, not down.
        count_include_pad: the divisor counts the padding too, but not what lies beyond it.
        divisor_override: the divisor; None for the number of elements that count.

    Returns:
        [N, C, P, Q] or [C, P, Q]; channels_last if input is.

    Raises:
        RuntimeError: a shape that does not fit, numbers out of range, a divisor of 0.
        TypeError: an argument of the wrong type.
        NotImplementedError: a dtype without a kernel.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.AvgPool2d.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> fastconv.functional.avg_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2).tolist()
        [[[[2.5, 4.5], [10.5, 12.5]]]]
    """
    if _overridden(input):
        return handle_torch_function(
            avg_pool2d,
            (input,),
            input,
            kernel_size,
            stride,
            padding,
            ceil_mode,
            count_include_pad,
            divisor_override,
        )
    rest = (padding, ceil_mode, count_include_pad, divisor_override)
    if isinstance(input, Tensor):
        if not _is_served(input):
            return torch.nn.functional.avg_pool2d(input, kernel_size, stride, *rest)
        if (
            type(kernel_size) is int
            and kernel_size <= _LARGEST
            and (stride is None or stride is kernel_size)
            and padding is _ZERO
            and ceil_mode is False
            and count_include_pad is True
            and divisor_override is None
        ):
            return _avg_pool2d(input, kernel_size, kernel_size)
        return _avg_pool2d(input, *avg_pool2d_window("avg_pool2d", kernel_size, stride, *rest))
    core = _backend.array_core
    if core is not None and (type(input) is ndarray or _arrays.core_serves(input)):
        return core.avg_pool2d(input, kernel_size, () if stride is None else stride, *rest)
    _arrays.expect_array("avg_pool2d", "input", input)
    window = avg_pool2d_window("avg_pool2d", kernel_size, stride, *rest)
    return _arrays.call("avg_pool2d", input, *window)


def adaptive_avg_pool2d(input: Any, output_size: Any) -> Any:
    """The means of windows that cover the input evenly, as
    ``torch.nn.functional.adaptive_avg_pool2d``.

    ``output[n,c,p,q]`` is the mean of the rows ``floor(p * H / P)`` to ``ceil((p + 1) * H / P)``,
    the latter excluded, and columns likewise. An output size of 1 is the mean of a plane.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16.
        output_size: int or (P, Q), each >= 0; None in a pair keeps the input's extent.

    Returns:
        [N, C, P, Q] or [C, P, Q]; channels_last if input is.

    Raises:
        RuntimeError: a shape that does not fit, numbers out of range.
        TypeError: an argument of the wrong type.
        NotImplementedError: a dtype without a kernel.

    Source of the formula:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
        >>> fastconv.functional.adaptive_avg_pool2d(image, (1, None)).tolist()
        [[[[6.0, 7.0, 8.0, 9.0]]]]
    """
    name = "adaptive_avg_pool2d"
    if _overridden(input):
        return handle_torch_function(adaptive_avg_pool2d, (input,), input, output_size)
    if isinstance(input, Tensor):
        if not _is_served(input):
            return torch.nn.functional.adaptive_avg_pool2d(input, output_size)
        size = adaptive_size(name, output_size, input.shape)
        if size == (1, 1) and (input.dim() not in (3, 4) or 0 in input.shape[-2:]):
            # To torch this is a mean, of tensors of any rank, and not a number of none.
            return torch.nn.functional.adaptive_avg_pool2d(input, output_size)
        return _adaptive_avg_pool2d(input, size)
    _arrays.expect_array(name, "input", input)
    core = _backend.array_core
    if core is not None and (type(input) is ndarray or _arrays.core_serves(input)):
        return core.adaptive_avg_pool2d(input, adaptive_size(name, output_size, input.shape))
    return _arrays.call(name, input, adaptive_size(name, output_size, input.shape))


def lp_pool2d(
    input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Any:
    """The p-norm of every window, as ``torch.nn.functional.lp_pool2d``.

    ``output[n,c,p,q] = (sum_{r,s} input[n,c,h,w] ** norm_type) ** (1 / norm_type)``. Put together
    from :func:`avg_pool2d` as torch does it: the mean of the powers times the number of elements
    of a whole window, also where ``ceil_mode`` cuts one; its absolute value is what the root is
    taken of. An infinite norm is the largest absolute value.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16.
        norm_type: the exponent p.
        kernel_size: int or (rows, columns).
        stride: int or (rows, columns); ``kernel_size`` if None.
        ceil_mode: round the output's height and width up, not down.

    Returns:
        [N, C, P, Q] or [C, P, Q]; channels_last if input is.

    Raises:
        RuntimeError, TypeError, NotImplementedError: as for :func:`avg_pool2d`.
        ValueError: a kernel_size of neither one nor two numbers.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.LPPool2d.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> fastconv.functional.lp_pool2d(np.array([[[3.0, 4.0]]]), 2, (1, 2)).tolist()
        [[[5.0]]]
    """
    if _overridden(input):
        return handle_torch_function(
            lp_pool2d, (input,), input, norm_type, kernel_size, stride, ceil_mode
        )
    if isinstance(input, Tensor):
        if not _is_served(input):
            return torch.nn.functional.lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode)
        package: Any = torch
        positive = torch.relu
    else:
        _arrays.expect_array("lp_pool2d", "input", input)
        package = _arrays.namespace_of(input)
        positive = functools.partial(package.maximum, 0)
    rows, columns = kernel_size if isinstance(kernel_size, Iterable) else (kernel_size,) * 2
    if isinstance(norm_type, (int, float)) and abs(norm_type) == float("inf"):
        from fastconv.functional import max_pool2d

        side = 1 if norm_type > 0 else -1
        return side * max_pool2d(side * package.abs(input), kernel_size, stride, 0, 1, ceil_mode)
    means = avg_pool2d(input**norm_type, kernel_size, stride, 0, ceil_mode)
    means = package.sign(means) * positive(package.abs(means))
    return (means * (rows * columns)) ** (1.0 / norm_type)
