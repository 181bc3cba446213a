"""What tests share: inputs, tolerances, devices, a comparison that says where and how much."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv._torch_private import HAS_TORCH, torch

# The unit roundoff of a type: half of the distance from 1 to the next number.
TOLERANCES: dict[str, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
# The type that kernels accumulate in.
_ACCUMULATOR = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float32",
    "bfloat16": "float32",
}


def tolerance(dtype: Any, reduction_length: int) -> tuple[float, float]:
    """(rtol, atol) for a sum of ``reduction_length`` products of numbers of size 1, against a
    float64 sum.

    One rounding of the result; and one of the accumulator per product, each in proportion to the
    partial sum, which grows with the square root of its length L: the deviation of the whole is
    0.4 * L roundoffs, and ten such deviations are granted. Integers must agree exactly.

    Args:
        dtype: of torch or NumPy, or its name.
        reduction_length: number of products in the longest sum.

    Example:
        >>> tolerance("int64", 10)
        (0.0, 0.0)
        >>> rtol, atol = tolerance("float32", 100)
        >>> 1e-8 < rtol < 1e-6 and 1e-6 < atol < 1e-4
        True
    """
    name = _name(dtype)
    if name not in TOLERANCES:
        return 0.0, 0.0
    unit = TOLERANCES[_ACCUMULATOR[name]]
    return 2 * TOLERANCES[name], 4 * unit * max(reduction_length, 1)


def assert_close(
    actual: Any, expected: Any, *, reduction_length: int = 1, context: str = ""
) -> None:
    """Compares a result with the float64 truth; a NaN must meet a NaN.

    Args:
        actual: tensor or array; its dtype decides the tolerance.
        expected: tensor or array of the same shape, usually in float64.
        reduction_length: number of products in the longest sum, for :func:`tolerance`.
        context: what was compared, for the message.

    Raises:
        AssertionError: with the worst positions, the sizes of the errors, and where along each axis
        they lie.
    """
    rtol, atol = tolerance(actual.dtype, reduction_length)
    got, want = to_float64(actual), to_float64(expected)
    if got.shape != want.shape:
        raise AssertionError(f"{context}: shape {got.shape}, expected {want.shape}")
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(got - want))
        bad = ~(same | (np.isfinite(want) & (error <= atol + rtol * np.abs(want))))
    if bad.any():
        raise AssertionError(_report(context, got, want, error, bad, rtol, atol))


# What a whole result may lose, as relative L2 error against float64, for normal data and weights
# that keep the variance. float32 leaves room for a fast convolution algorithm.
RELATIVE_BOUNDS: dict[str, float] = {
    "float64": 1e-15,
    "float32": 3e-6,
    "float16": 1e-3,
    "bfloat16": 6e-3,
}


def relative_error(actual: Any, expected: Any) -> float:
    """The L2 norm of ``actual - expected`` over that of ``expected``, in float64.

    Args:
        actual: tensor or array.
        expected: tensor or array of the same shape, usually in float64.

    Returns:
        The relative error; 0 if both are zero, infinity if ``actual`` is not finite where
        ``expected`` is.

    Example:
        >>> relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.5])) < 0.1
        True
    """
    got, want = to_float64(actual), to_float64(expected)
    if got.shape != want.shape:
        raise AssertionError(f"relative_error: shape {got.shape}, expected {want.shape}")
    error: float = float(np.linalg.norm(got - want))
    size: float = float(np.linalg.norm(want))
    if not np.isfinite(error):
        return float("inf")
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size


def relative_bound(dtype: Any, reduction_length: int) -> float:
    """The largest :func:`relative_error` of a sound result.

    Long sums, such as those of a weight's gradient, lose a roundoff of the accumulator times the
    square root of their length.

    Args:
        dtype: of torch or NumPy, or its name.
        reduction_length: number of products in the longest sum.
    """
    name = _name(dtype)
    unit = TOLERANCES[_ACCUMULATOR[name]]
    return max(RELATIVE_BOUNDS[name], float(unit * max(reduction_length, 1) ** 0.5))


def assert_whole_close(
    actual: Any, expected: Any, *, reduction_length: int = 1, context: str = ""
) -> None:
    """Compares a result whose elements are no single sums, but pass through rounded steps, with the
    float64 truth: as a whole by :func:`relative_bound`, and no element by more than 8 times that
    share of the largest. What is not finite must be the same.

    Args:
        actual: tensor or array; its dtype decides the bound.
        expected: tensor or array of the same shape, usually in float64.
        reduction_length: number of products in the longest sum.
        context: what was compared, for the message.

    Raises:
        AssertionError: with the error and its bound.
    """
    got, want = to_float64(actual), to_float64(expected)
    if got.shape != want.shape:
        raise AssertionError(f"{context}: shape {got.shape}, expected {want.shape}")
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=context)
    got, want = got[finite], want[finite]
    if not want.size:
        return
    bound = relative_bound(actual.dtype, reduction_length)
    error = relative_error(got, want)
    largest = float(np.abs(want).max())
    worst = float(np.abs(got - want).max())
    if not (error <= bound and worst <= 8 * bound * largest):
        raise AssertionError(
            f"{context}: relative L2 error {error:.2e} (bound {bound:.1e}), largest error "
            f"{worst:.2e} of {largest:.2e} (bound {8 * bound * largest:.1e})"
        )


def _report(
    context: str, got: Any, want: Any, error: Any, bad: Any, rtol: float, atol: float
) -> str:
    """Which elements are wrong, and how they are spread along each axis: tails and tiles show."""
    order = np.argsort(np.where(np.isnan(error), np.inf, error), axis=None)[::-1]
    worst = [tuple(map(int, np.unravel_index(i, bad.shape))) for i in order[:5]]
    lines = [
        f"{context}: {int(bad.sum())} of {bad.size} elements differ "
        f"(rtol {rtol:.1e}, atol {atol:.1e}); shape {bad.shape}",
        *(f"  at {at}: got {got[at]!r}, expected {want[at]!r}" for at in worst if bad[at]),
    ]
    for axis in range(bad.ndim):
        others = tuple(a for a in range(bad.ndim) if a != axis)
        counts = bad.sum(others)
        where = ", ".join(f"{i}: {n}" for i, n in enumerate(counts.tolist()) if n)
        lines.append(f"  along axis {axis} (index: wrong): {where[:300]}")
    return "\n".join(lines)


def devices() -> list[str]:
    """The devices to test on here: ``cpu``, and ``cuda`` if torch and fastconv see one."""
    from fastconv import _native

    core = _native.core
    has_cuda = HAS_TORCH and torch.cuda.is_available() and core is not None
    return ["cpu", "cuda"] if has_cuda and core.cuda_archs() else ["cpu"]  # type: ignore[union-attr]


def make_input(
    shape: tuple[int, ...], dtype: Any = "float32", layout: str = "contiguous", seed: int = 0
) -> Any:
    """A torch tensor of normally distributed numbers (integers: of the whole range), the same on
    every machine.

    Args:
        shape: of the tensor.
        dtype: of torch, or its name.
        layout: ``contiguous``, ``channels_last``, ``transposed`` (width before height in memory),
            ``sliced`` (every second column of something wider, at an offset) or ``expanded`` (one
            image, seen N times).
        seed: of the random numbers.

    Returns:
        A tensor of that shape whatever its memory looks like; float64 values rounded to ``dtype``.
    """
    name = _name(dtype)
    random = np.random.default_rng(seed)
    kind = getattr(torch, name)
    if name in TOLERANCES:
        values = torch.from_numpy(random.standard_normal(shape)).to(kind)
    else:
        limits = torch.iinfo(kind)
        array = random.integers(limits.min, limits.max, shape, np.int64, endpoint=True)
        values = torch.from_numpy(array).to(kind)
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = torch.zeros((*shape[:-1], 2 * shape[-1] + 3), dtype=kind)
        view = wide[..., 3::2]
        return view.copy_(values)
    if layout == "expanded":
        return values[:1].expand(shape) if shape[0] else values
    if layout != "contiguous":
        raise ValueError(f"make_input: expected a known layout, got {layout!r}")
    return values


def to_float64(array: Any) -> Any:
    """Any tensor or array as a NumPy array of float64; integers stay what they are."""
    if HAS_TORCH and isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.double() if array.is_floating_point() else array).numpy()
    array = np.asarray(array)
    return array if array.dtype.kind in "iub" else array.astype(np.float64)


def _name(dtype: Any) -> str:
    text = str(dtype).removeprefix("torch.")
    return text if text in TOLERANCES or text in ("bfloat16",) else str(np.dtype(text))
