"""How an illegal call is reported, and the laws that several operations share.

Works on anything with ``shape`` and ``dtype``: torch tensors (real and fake, with symbolic sizes)
and NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

FLOATING = frozenset({"float32", "float64", "float16", "bfloat16"})
INTEGER = frozenset({"uint8", "int8", "int16", "int32", "int64"})
# Window geometry stays far from where sums of int64 overflow.
LARGEST = 2**31 - 1


class Output(NamedTuple):
    """What an operation promises of one result."""

    shape: tuple[int, ...]
    channels_last: bool = False
    dtype: Any = None  # that of the first tensor if None
    order: tuple[int, ...] | None = None  # the axes as they lie in memory, the outermost first


def expect(legal: bool, op: str, law: str, got: object) -> None:
    """Raises RuntimeError ``<op>: expected <law>, got <got>`` unless ``legal``."""
    if not legal:
        raise RuntimeError(f"{op}: expected {law}, got {got}")


def dtype_name(array: Any) -> str:
    """``float32`` of a torch tensor and of a NumPy array alike."""
    return str(array.dtype).removeprefix("torch.")


def expect_dtype(op: str, dtypes: frozenset[str], array: Any) -> None:
    """The element type is one that the operation knows."""
    name = dtype_name(array)
    expect(name in dtypes, op, f"a dtype of {', '.join(sorted(dtypes))}", name)


def expect_alike(op: str, name: str, array: Any, first_name: str, first: Any) -> None:
    """``array`` has the dtype and the device of ``first``."""
    dtype = dtype_name(first)
    law = f"{name} of the same dtype as {first_name} ({dtype})"
    expect(dtype_name(array) == dtype, op, law, dtype_name(array))
    device, wanted = getattr(array, "device", None), getattr(first, "device", None)
    expect(device == wanted, op, f"{name} on the same device as {first_name} ({wanted})", device)


def expect_rank(op: str, name: str, shape: Sequence[int], *ranks: int) -> None:
    """The number of axes is one of ``ranks``."""
    law = f"{name} of {' or '.join(f'{rank}' for rank in ranks)} dimensions"
    expect(len(shape) in ranks, op, law, f"{len(shape)} ({list(shape)})")


def expect_shape(op: str, name: str, shape: Sequence[int], wanted: Sequence[int]) -> None:
    """``shape`` is ``wanted``."""
    legal = len(shape) == len(wanted) and all(a == b for a, b in zip(shape, wanted, strict=True))
    expect(legal, op, f"{name} of shape {list(wanted)}", list(shape))


def expect_pair(op: str, name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """One number or two, each in [least, LARGEST]; returns two."""
    numbers = [value] if isinstance(value, int) else list(value)
    expect(len(numbers) in (1, 2), op, f"{name} of one or two numbers", numbers)
    for number in numbers:
        expect(least <= number <= LARGEST, op, f"{name} in [{least}, {LARGEST}]", number)
    return numbers[0], numbers[-1]
