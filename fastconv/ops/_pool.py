"""The laws and the shapes that all kinds of pooling share."""

from __future__ import annotations

from collections.abc import Sequence

from fastconv.ops._check import expect, expect_pair, expect_rank


def expect_image(op: str, x: Sequence[int], *, adaptive: bool = False) -> None:
    """[N, C, H, W] or [C, H, W], of which N alone may be 0; C too if ``adaptive``."""
    expect_rank(op, "input", x, 3, 4)
    law = f"an input without empty dimensions (but the batch{' or channels' if adaptive else ''})"
    expect(all(size >= 1 for size in x[-2 if adaptive else -3 :]), op, law, list(x))


def pooled_size(
    op: str,
    x: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> tuple[int, ...]:
    """Checks the geometry of a pooling; the shape of its output."""
    expect_image(op, x)
    window = expect_pair(op, "kernel_size", kernel_size, 1)
    steps = window if stride in ((), []) else expect_pair(op, "stride", stride, 1)
    pads = expect_pair(op, "padding", padding, 0)
    dilations = expect_pair(op, "dilation", dilation, 1)
    extents = []
    for axis in (0, 1):
        pad, step, taps = pads[axis], steps[axis], window[axis]
        expect(pad <= taps // 2, op, f"padding of at most half the kernel_size ({taps})", pad)
        size = x[axis - 2]
        room = size + 2 * pad - dilations[axis] * (taps - 1) - 1
        count = (room + step - 1 if ceil_mode else room) // step + 1
        # The last window must start inside the input or in the padding before it.
        if ceil_mode and (count - 1) * step >= size + pad:
            count -= 1
        expect(count >= 1, op, f"a window of at most the padded input ({size} + 2 * {pad})", taps)
        extents.append(count)
    return (*x[:-2], *extents)
