"""torch.nn.functional's names, signatures, defaults and exceptions; torch tensors, NumPy, CuPy and
DLPack arrays in, the same kind out.

What fastconv has no kernel for (other dtypes, devices and layouts of torch tensors) goes to torch's
own function: nothing that torch can do is lost. For arrays it is a NotImplementedError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy import ndarray

from fastconv import _arrays, _backend
from fastconv._adaptive_max_pooling import (
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
)
from fastconv._arguments import conv2d_geometry, conv_transpose2d_geometry, max_pool2d_window
from fastconv._attention import scaled_dot_product_attention
from fastconv._attention_varlen import attention_varlen
from fastconv._average_pooling import adaptive_avg_pool2d, avg_pool2d, lp_pool2d
from fastconv._max_unpooling import max_unpool2d
from fastconv._recurrent import (
    gru,
    gru_cell,
    lstm,
    lstm_cell,
    rnn_relu,
    rnn_relu_cell,
    rnn_tanh,
    rnn_tanh_cell,
)
from fastconv._torch_private import HAS_TORCH, torch

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "attention_varlen",
    "avg_pool2d",
    "conv2d",
    "conv_transpose2d",
    "gru",
    "gru_cell",
    "lp_pool2d",
    "lstm",
    "lstm_cell",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_unpool2d",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
    "scaled_dot_product_attention",
]

# Bound once: looking names up is a tenth of what a call costs.
_ONE, _ZERO, _LARGEST = 1, 0, 2**31 - 1
if HAS_TORCH:
    from torch import Tensor
    from torch.overrides import handle_torch_function
    from torch.overrides import has_torch_function_unary as _overridden_1
    from torch.overrides import has_torch_function_variadic as _overridden_3

    from fastconv.ops.conv2d import conv2d as _conv2d_op
    from fastconv.ops.conv_transpose2d import conv_transpose2d as _conv_transpose2d_op
    from fastconv.ops.max_pool2d import max_pool2d as _max_pool2d_op
    from fastconv.ops.max_pool2d import max_pool2d_with_indices as _max_pool2d_with_indices_op
    from fastconv.ops.max_pool2d import max_pool2d_with_taps as _max_pool2d_with_taps_op

    _strided = torch.strided
    _is_grad_enabled = torch.is_grad_enabled
    _is_compiling = torch.compiler.is_dynamo_compiling
    _conv2d = _conv2d_op.call
    _conv2d_dtypes = _conv2d_op.torch_dtypes
    _conv_transpose2d = _conv_transpose2d_op.call
    _max_pool2d = _max_pool2d_op.call
    _max_pool2d_with_indices = _max_pool2d_with_indices_op.call
    _max_pool2d_with_taps = _max_pool2d_with_taps_op.call
    _max_pool2d_dtypes = _max_pool2d_op.torch_dtypes
elif not TYPE_CHECKING:

    class Tensor:
        """Nothing is one."""

    def _overridden_1(_):
        return False

    def _overridden_3(*_):
        return False


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Two-dimensional cross-correlation, as ``torch.nn.functional.conv2d``.

    ``output[n,k,p,q] = bias[k] + sum_{c,r,s} input[n, g*C/G + c, h, w] * weight[k,c,r,s]`` with
    ``h = p * stride - padding + r * dilation`` (``w`` likewise), ``g = k / (K/G)``, and 0 outside
    of the input.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16.
        weight: [K, C/groups, R, S], of the same dtype and device.
        bias: [K], or None.
        stride: int or (rows, columns).
        padding: int, (rows, columns), ``"same"`` or ``"valid"``.
        dilation: int or (rows, columns).
        groups: G, divides C and K.

    Returns:
        [N, K, P, Q] or [K, P, Q]; channels_last if input or weight is.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, numbers out of range.
        TypeError: an argument of the wrong type.
        NotImplementedError: an array of a dtype without a kernel.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> image, weight = np.ones((1, 3, 8, 8), "float32"), np.ones((4, 3, 3, 3), "float32")
        >>> fastconv.functional.conv2d(image, weight, padding=1).shape
        (1, 4, 8, 8)
    """
    core = _backend.array_core
    if type(input) is type(weight) is ndarray and core is not None and type(padding) is int:
        return core.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if _overridden_3(input, weight, bias):
        return _override(conv2d, (input, weight, bias), stride, padding, dilation, groups)
    if isinstance(input, Tensor):
        if (
            not isinstance(weight, Tensor)
            or (bias is not None and not isinstance(bias, Tensor))
            or input.dtype not in _conv2d_dtypes
            or input.layout is not _strided
            or not (input.is_cpu or _backend.has_kernels(input))
        ):
            return torch.nn.functional.conv2d(
                input, weight, bias, stride, padding, dilation, groups
            )
        if stride is _ONE and padding is _ZERO and dilation is _ONE and groups is _ONE:
            return _conv2d(input, weight, bias)
        geometry = conv2d_geometry("conv2d", weight.shape, stride, padding, dilation, groups)
        return _conv2d(input, weight, bias, *geometry)
    _arrays.expect_array("conv2d", "input", input)
    _arrays.expect_array("conv2d", "weight", weight)
    geometry = conv2d_geometry("conv2d", weight.shape, stride, padding, dilation, groups)
    if core is not None and _arrays.core_serves(input):
        return core.conv2d(input, weight, bias, *geometry)
    return _arrays.call("conv2d", input, weight, bias, *geometry)


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Two-dimensional transposed convolution, as ``torch.nn.functional.conv_transpose2d``.

    ``output[n, g*K/G + k, h, w] = bias[g*K/G + k] + sum_{c,r,s} input[n,c,p,q] * weight[c,k,r,s]``
    over all ``p``, ``r`` with ``h = p * stride - padding + r * dilation`` (``q``, ``s``, ``w``
    likewise) and all ``c`` of group ``g = c / (C/G)``: the gradient of :func:`conv2d` by its input.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16.
        weight: [C, K/groups, R, S], of the same dtype and device.
        bias: [K], or None.
        stride: int or (rows, columns).
        padding: int or (rows, columns), what is cut off on every side.
        output_padding: int or (rows, columns), what is added behind; smaller than ``stride`` or
            ``dilation``.
        groups: G, divides C.
        dilation: int or (rows, columns).

    Returns:
        [N, K, P, Q] or [K, P, Q], ``P = (H - 1) * stride - 2 * padding + dilation * (R - 1) +
        output_padding + 1``, ``Q`` likewise; channels_last if input or weight is.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, numbers out of range.
        TypeError: an argument of the wrong type.
        NotImplementedError: an array of a dtype without a kernel.

    Source of the formula:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> image, weight = np.ones((1, 3, 8, 8), "float32"), np.ones((3, 4, 2, 2), "float32")
        >>> fastconv.functional.conv_transpose2d(image, weight, stride=2).shape
        (1, 4, 16, 16)
    """
    core = _backend.array_core
    if type(input) is type(weight) is ndarray and core is not None:
        return core.conv_transpose2d(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    given = stride, padding, output_padding, groups, dilation
    if _overridden_3(input, weight, bias):
        return _override(conv_transpose2d, (input, weight, bias), *given)
    if isinstance(input, Tensor):
        if (
            not isinstance(weight, Tensor)
            or (bias is not None and not isinstance(bias, Tensor))
            or input.dtype not in _conv2d_dtypes
            or input.layout is not _strided
            or not (input.is_cpu or _backend.has_kernels(input))
        ):
            return torch.nn.functional.conv_transpose2d(input, weight, bias, *given)
        geometry = conv_transpose2d_geometry("conv_transpose2d", *given)
        return _conv_transpose2d(input, weight, bias, *geometry)
    _arrays.expect_array("conv_transpose2d", "input", input)
    _arrays.expect_array("conv_transpose2d", "weight", weight)
    geometry = conv_transpose2d_geometry("conv_transpose2d", *given)
    if core is not None and _arrays.core_serves(input):
        return core.conv_transpose2d(input, weight, bias, *geometry)
    return _arrays.call("conv_transpose2d", input, weight, bias, *geometry)


def max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of every window, as ``torch.nn.functional.max_pool2d``.

    ``output[n,c,p,q] = max_{r,s} input[n,c,h,w]`` with ``h = p * stride - padding + r * dilation``
    (``w`` likewise). Padding is never taken. A NaN is larger than everything; of equal elements the
    first is taken.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16, float16 or an integer type.
        kernel_size: int or (rows, columns).
        stride: int or (rows, columns); ``kernel_size`` if None or empty.
        padding: int or (rows, columns), at most half of ``kernel_size``.
        dilation: int or (rows, columns).
        ceil_mode: round the output's height and width up, not down.
        return_indices: return (output, indices): the position ``h * W + w`` of what was taken.

    Returns:
        [N, C, P, Q] or [C, P, Q]; channels_last if input is.

    Raises:
        RuntimeError: a shape that does not fit, numbers out of range.
        TypeError: an argument of the wrong type.
        NotImplementedError: a dtype without a kernel.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> fastconv.functional.max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2).tolist()
        [[[[5.0, 7.0], [13.0, 15.0]]]]
    """
    if _overridden_1(input):
        return _override(
            max_pool2d, (input,), kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
    if return_indices:
        return max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    if isinstance(input, Tensor):
        if (
            input.dtype not in _max_pool2d_dtypes
            or input.layout is not _strided
            or not (input.is_cpu or _backend.has_kernels(input))
        ):
            return torch.nn.functional.max_pool2d(
                input, kernel_size, stride, padding, dilation, ceil_mode
            )
        if (
            type(kernel_size) is int
            and kernel_size <= _LARGEST
            and (stride is None or stride is kernel_size)
            and padding is _ZERO
            and dilation is _ONE
            and ceil_mode is False
        ):
            window: tuple[Any, ...] = (kernel_size, kernel_size)
        else:
            window = max_pool2d_window(
                "max_pool2d", kernel_size, stride, padding, dilation, ceil_mode
            )
        # In a compiled graph the op itself would have to look for the places again.
        if _is_compiling() and input.requires_grad and _is_grad_enabled():
            return _max_pool2d_with_taps(input, *window)[0]
        return _max_pool2d(input, *window)
    core = _backend.array_core
    if core is not None and (type(input) is ndarray or _arrays.core_serves(input)):
        step = () if stride is None else stride
        return core.max_pool2d(input, kernel_size, step, padding, dilation, ceil_mode)
    _arrays.expect_array("max_pool2d", "input", input)
    window = max_pool2d_window("max_pool2d", kernel_size, stride, padding, dilation, ceil_mode)
    return _arrays.call("max_pool2d", input, *window)


def max_pool2d_with_indices(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """:func:`max_pool2d` and the indices, as ``torch.nn.functional.max_pool2d_with_indices``.

    Args:
        input, kernel_size, stride, padding, dilation, ceil_mode: as for :func:`max_pool2d`.
        return_indices: has no effect, as in torch.

    Returns:
        The output and the int64 indices, both [N, C, P, Q] or [C, P, Q].

    Raises:
        RuntimeError, TypeError, NotImplementedError: as for :func:`max_pool2d`.

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> image = np.arange(16.0).reshape(1, 4, 4)
        >>> fastconv.functional.max_pool2d_with_indices(image, 2)[1].tolist()
        [[[5, 7], [13, 15]]]
    """
    name = "max_pool2d_with_indices"
    if _overridden_1(input):
        return _override(
            max_pool2d_with_indices, (input,), kernel_size, stride, padding, dilation, ceil_mode
        )
    if isinstance(input, Tensor):
        if (
            input.dtype not in _max_pool2d_dtypes
            or input.layout is not _strided
            or not (input.is_cpu or _backend.has_kernels(input))
        ):
            return torch.nn.functional.max_pool2d_with_indices(
                input, kernel_size, stride, padding, dilation, ceil_mode
            )
        window = max_pool2d_window(name, kernel_size, stride, padding, dilation, ceil_mode)
        return _max_pool2d_with_indices(input, *window)
    core = _backend.array_core
    if core is not None and (type(input) is ndarray or _arrays.core_serves(input)):
        step = () if stride is None else stride
        return core.max_pool2d_with_indices(input, kernel_size, step, padding, dilation, ceil_mode)
    _arrays.expect_array(name, "input", input)
    window = max_pool2d_window(name, kernel_size, stride, padding, dilation, ceil_mode)
    return _arrays.call(name, input, *window)


def _override(function: Any, tensors: tuple[Any, ...], *constants: Any) -> Any:
    """Tensor subclasses, torch.fx proxies and modes that take over torch functions."""
    return handle_torch_function(function, tensors, *tensors, *constants)
