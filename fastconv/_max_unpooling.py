"""The function of ``fastconv.functional`` that puts maxima back where they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastconv import _arrays, _backend
from fastconv._arguments import unpool_size
from fastconv._torch_private import HAS_TORCH, torch

if HAS_TORCH:
    from torch import Tensor
    from torch.overrides import handle_torch_function
    from torch.overrides import has_torch_function_unary as _overridden

    from fastconv.ops.max_unpool2d import max_unpool2d as _op

    _strided = torch.strided
elif not TYPE_CHECKING:

    class Tensor:
        """Nothing is one."""

    def _overridden(_):
        return False


def max_unpool2d(
    input: Any,
    indices: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
) -> Any:
    """Every element back to the place that its index names, as
    ``torch.nn.functional.max_unpool2d``.

    ``output[n,c,h,w] = input[n,c,p,q]`` where ``indices[n,c,p,q] == h * W + w``, zero elsewhere; of
    equal indices the last counts. An index outside of the output raises; on a CUDA device, which
    nobody waits for, it is left out (torch ends the process's use of the device).

    Args:
        input: [N, C, P, Q] or [C, P, Q]; float32, float64, bfloat16 or float16.
        indices: int64, of the same shape, from ``max_pool2d(..., return_indices=True)``.
        kernel_size, stride, padding: int or (rows, columns), those of the pooling; they give the
            output's size: ``(P - 1) * stride + kernel_size - 2 * padding``.
        output_size: (H, W) or (N, C, H, W), less than a stride from that.

    Returns:
        [N, C, H, W] or [C, H, W]; channels_last if input is.

    Raises:
        RuntimeError: a shape that does not fit, an index outside, indices of another dtype.
        ValueError: an output_size that does not fit.
        TypeError: an argument of the wrong type.
        NotImplementedError: a dtype without a kernel.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxUnpool2d.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> pooled, places = np.array([[[5.0]]]), np.array([[[2]]])
        >>> fastconv.functional.max_unpool2d(pooled, places, 2).tolist()
        [[[0.0, 0.0], [5.0, 0.0]]]
    """
    if _overridden(input):
        return handle_torch_function(
            max_unpool2d, (input,), input, indices, kernel_size, stride, padding, output_size
        )
    name, window = "max_unpool2d", (kernel_size, stride, padding, output_size)
    if isinstance(input, Tensor):
        if (
            not isinstance(indices, Tensor)
            or input.dtype not in _op.torch_dtypes
            or input.layout is not _strided
            or not (input.is_cpu or _backend.has_kernels(input))
        ):
            return torch.nn.functional.max_unpool2d(input, indices, *window)
        return _op.call(input, indices, unpool_size(name, input.shape, *window))
    _arrays.expect_array(name, "input", input)
    _arrays.expect_array(name, "indices", indices)
    size = unpool_size(name, input.shape, *window)
    core = _backend.array_core
    if core is not None and _arrays.core_serves(input):
        return core.max_unpool2d(input, indices, size)
    return _arrays.call(name, input, indices, size)
