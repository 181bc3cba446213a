"""Constants of a call as its user wrote them, brought to the form of the op's schema.

Raises what torch's own functions raise: TypeError for what is no integer (bool included),
ValueError for what is no int64, RuntimeError for a wrong number of them.
"""

from __future__ import annotations

import operator
from typing import Any

from fastconv._torch_private import is_symbol

IntOrPair = Any  # int, or tuple or list of one or two


def integer(op: str, name: str, value: Any) -> int:
    """An int64."""
    if type(value) is int:
        number = value
    elif isinstance(value, bool):
        raise TypeError(f"{op}: expected {name} to be an int, got bool")
    else:
        try:
            number = operator.index(value)
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise TypeError(f"{op}: expected {name} to be an int, got {kind}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{op}: expected {name} to be an int64, got {number}")
    return number


def one_or_two(op: str, name: str, value: IntOrPair) -> int | tuple[int, ...]:
    """An int if both are the same: the dispatcher reads it faster than a pair.

    The number of ints is left to the op: in torch, too, a wrong type is told before a wrong number.
    """
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if not isinstance(value, (tuple, list)):
        return integer(op, name, value)
    try:
        # torch looks for a bool in the first place alone.
        ints = tuple(
            integer(op, name, int(each) if i and type(each) is bool else each)
            for i, each in enumerate(value)
        )
    except ValueError as error:  # beyond 64 bits: a TypeError in a tuple, as in torch
        raise TypeError(str(error)) from None
    return ints[0] if ints and ints[0] == ints[-1] and len(ints) <= 2 else ints


def conv2d_geometry(
    op: str, weight_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[Any, ...]:
    """(stride, padding, dilation, groups) for the op, without trailing defaults;

    'same' and 'valid' resolved.
    """
    stride = one_or_two(op, "stride", stride)
    dilation = one_or_two(op, "dilation", dilation)
    groups = integer(op, "groups", groups)
    if isinstance(padding, str):
        padding = _named_padding(op, weight_size, stride, padding, dilation)
    else:
        padding = one_or_two(op, "padding", padding)
        if isinstance(padding, tuple) and len(padding) != 2:  # the op would take four
            raise RuntimeError(f"{op}: expected padding of one or two ints, got {list(padding)}")
    if groups != 1:
        return stride, padding, dilation, groups
    if dilation != 1:
        return stride, padding, dilation
    return (stride, padding) if padding != 0 else (stride,) if stride != 1 else ()


def _named_padding(op: str, weight_size: Any, stride: Any, padding: str, dilation: Any) -> Any:
    if padding == "valid":
        return 0
    if padding != "same":
        raise RuntimeError(f"{op}: expected padding 'same', 'valid' or ints, got {padding!r}")
    if stride != 1:
        raise RuntimeError(f"{op}: expected stride 1 with padding='same', got {stride}")
    dilations = (dilation, dilation) if isinstance(dilation, int) else dilation
    if len(dilations) != 2:
        raise RuntimeError(f"{op}: expected dilation of one or two ints, got {list(dilations)}")
    sides: list[int] = []
    for taps, distance in zip(weight_size[-2:], dilations, strict=True):
        total = distance * (taps - 1)
        sides += (total // 2, total - total // 2)  # an odd one goes behind, as in torch
    top, bottom, left, right = sides
    return (top, left) if (top, left) == (bottom, right) else (top, bottom, left, right)


def conv_transpose2d_geometry(
    op: str, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> tuple[Any, ...]:
    """(stride, padding, output_padding, groups, dilation) for the op, without trailing defaults."""
    stride = one_or_two(op, "stride", stride)
    padding = one_or_two(op, "padding", padding)
    output_padding = one_or_two(op, "output_padding", output_padding)
    groups = integer(op, "groups", groups)
    dilation = one_or_two(op, "dilation", dilation)
    if dilation != 1:
        return stride, padding, output_padding, groups, dilation
    if groups != 1:
        return stride, padding, output_padding, groups
    if output_padding != 0:
        return stride, padding, output_padding
    return (stride, padding) if padding != 0 else (stride,) if stride != 1 else ()


def expect_bool(op: str, name: str, value: Any) -> None:
    """Raises TypeError, as torch does, unless ``value`` is a bool."""
    if type(value) is not bool:
        raise TypeError(f"{op}: expected {name} to be a bool, got {type(value).__name__}")


def pool_window(
    op: str, kernel_size: Any, stride: Any, padding: Any
) -> tuple[int | tuple[int, ...], int | tuple[int, ...], int | tuple[int, ...]]:
    """(kernel_size, stride, padding); no stride means the kernel_size."""
    kernel_size = one_or_two(op, "kernel_size", kernel_size)
    empty = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    stride = kernel_size if empty else one_or_two(op, "stride", stride)
    return kernel_size, stride, one_or_two(op, "padding", padding)


def max_pool2d_window(
    op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> tuple[Any, ...]:
    """(kernel_size, stride, padding, dilation, ceil_mode) for the op, without trailing defaults.

    The stride is always there: AOTInductor (torch 2.13) passes the default ``[]`` on as None.
    """
    kernel_size, stride, padding = pool_window(op, kernel_size, stride, padding)
    dilation = one_or_two(op, "dilation", dilation)
    expect_bool(op, "ceil_mode", ceil_mode)
    if ceil_mode:
        return kernel_size, stride, padding, dilation, ceil_mode
    if dilation != 1:
        return kernel_size, stride, padding, dilation
    return (kernel_size, stride, padding) if padding != 0 else (kernel_size, stride)


def avg_pool2d_window(
    op: str,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
    divisor_override: Any,
) -> tuple[Any, ...]:
    """(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override) for the op,
    without trailing defaults; the stride is always there.
    """
    kernel_size, stride, padding = pool_window(op, kernel_size, stride, padding)
    expect_bool(op, "ceil_mode", ceil_mode)
    expect_bool(op, "count_include_pad", count_include_pad)
    if divisor_override is not None:
        divisor = integer(op, "divisor_override", divisor_override)
        return kernel_size, stride, padding, ceil_mode, count_include_pad, divisor
    if not count_include_pad:
        return kernel_size, stride, padding, ceil_mode, count_include_pad
    if ceil_mode:
        return kernel_size, stride, padding, ceil_mode
    return (kernel_size, stride, padding) if padding != 0 else (kernel_size, stride)


def unpool_size(
    op: str, input_size: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> tuple[Any, Any]:
    """(H, W) of an unpooled image: what the window says, or what is asked for and fits it.

    Raises ValueError for a size of which no pooling with this window makes the input's.
    """
    window = _two(op, "kernel_size", kernel_size)
    step = window if stride is None else _two(op, "stride", stride)
    pad = _two(op, "padding", padding)
    if len(input_size) < 3:  # the op says so
        return 0, 0
    axes = zip(input_size[-2:], window, step, pad, strict=True)
    rows, columns = ((n - 1) * move + taps - 2 * side for n, taps, move, side in axes)
    if output_size is not None:
        asked = tuple(output_size)[2:] if len(output_size) == 4 else tuple(output_size)
        if len(asked) != 2:
            raise ValueError(f"{op}: expected output_size of 2 or 4 numbers, got {len(asked)}")
        asked = tuple(_size(op, each) for each in asked)
        for usual, move, each in zip((rows, columns), step, asked, strict=True):
            if not usual - move < each < usual + move:
                law = f"output_size between {usual - move} and {usual + move}"
                raise ValueError(f"{op}: expected {law}, got {asked}")
        rows, columns = asked
    if rows < 0 or columns < 0:
        raise ValueError(f"{op}: expected output_size of numbers >= 0, got {(rows, columns)}")
    if max(rows, columns) >= 2**63:
        raise RuntimeError(f"{op}: expected output_size of int64, got {(rows, columns)}")
    return rows, columns


def _two(op: str, name: str, value: IntOrPair) -> tuple[int, int]:
    """One number or two, as two."""
    numbers = one_or_two(op, name, value)
    if isinstance(numbers, int):
        return numbers, numbers
    if len(numbers) not in (1, 2):
        raise RuntimeError(f"{op}: expected {name} of one or two ints, got {list(numbers)}")
    return numbers[0], numbers[-1]


def adaptive_size(op: str, output_size: Any, input_size: Any) -> tuple[Any, ...]:
    """What an adaptive pooling is asked for, as sizes; None stands for the input's own.

    The number of sizes is left to the op. Symbols of torch stay symbols.
    """
    if isinstance(output_size, int) or is_symbol(output_size):
        return (_size(op, output_size),) * 2
    if not hasattr(output_size, "__len__"):
        kind = type(output_size).__name__
        raise TypeError(f"{op}: expected output_size to be an int or ints, got {kind}")
    output_size = tuple(output_size)
    if len(input_size) <= len(output_size):
        raise ValueError(
            f"{op}: expected input of more dimensions than output_size has "
            f"({len(output_size)}), got {len(input_size)}"
        )
    given = zip(output_size, input_size[len(input_size) - len(output_size) :], strict=True)
    return tuple(own if size is None else _size(op, size) for size, own in given)


def _size(op: str, value: Any) -> Any:
    return value if is_symbol(value) else integer(op, "output_size", value)
