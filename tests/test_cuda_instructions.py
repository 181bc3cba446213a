"""Law: the emulated device carries out every wrapped instruction as the PTX manual states it.

What a kernel of tests/cuda_emulator/probe_*.cu leaves behind is compared with the manual's layout,
written out here once more. Bugs planted in kernels must be caught, with kernel, thread and line.
https://docs.nvidia.com/cuda/parallel-thread-execution/
"""

import ctypes
import itertools

import cuda_emulator
import ml_dtypes
import numpy as np
import pytest
from cuda_emulator import EmulationError

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC, which is not here"
)

SWIZZLES = {0: None, 1: 32, 2: 64, 3: 128}  # CUtensorMapSwizzle: bytes of its span


def aligned(size, dtype=np.uint8, fill=0xFF):
    """An array at an address that is a multiple of 128 bytes."""
    room = np.full(size * np.dtype(dtype).itemsize + 128, fill, np.uint8)
    start = -room.ctypes.data % 128
    return room[start : start + size * np.dtype(dtype).itemsize].view(dtype)


def random_bytes(size):
    array = aligned(size)
    array[:] = np.random.default_rng(size).integers(0, 256, size)
    return array


def run(name, source, target, numbers=(), tensor_map=None, read=(), write=()):
    values = (ctypes.c_int64 * 12)(*numbers)
    cuda_emulator.call(
        "emulate_probe",
        *(name.encode(), source, target, values, tensor_map),
        read=(source, *read) if source is not None else read,
        write=(target, *write) if target is not None else write,
    )
    return target


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_reads_source_bytes_and_fills_with_zeros(size):
    source = random_bytes(64 * size)
    expected = source.copy().reshape(64, size)
    for thread in range(64):
        expected[thread, thread % (size + 1) :] = 0
    result = run(f"copy_async {size}", source, aligned(64 * size))
    np.testing.assert_array_equal(result, expected.ravel())


def test_cp_async_groups_complete_oldest_first():
    source = random_bytes(64 * 3 * 4)
    result = run("copy groups", source, aligned(64 * 3 * 4))
    expected = source.view(np.uint32).reshape(3, 64)[:, ::-1]
    np.testing.assert_array_equal(result.view(np.uint32).reshape(3, 64), expected)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_mbarrier_phases_alternate_in_parity(rounds):
    source = random_bytes(256)
    result = run("mbarrier", source, aligned(256), [rounds])
    np.testing.assert_array_equal(result.view(np.uint32), np.roll(source.view(np.uint32), -rounds))


@pytest.mark.parametrize("size", [16, 1040, 4096])
def test_bulk_copies(size):
    source = random_bytes(size)
    np.testing.assert_array_equal(run("bulk", source, aligned(size), [size]), source + np.uint8(1))


def in_shared_memory(lines, swizzle):
    """Lines of bytes as a tensor copy leaves them: address bits 4.. xor bits 7.. ."""
    flat = np.ascontiguousarray(lines).reshape(-1)
    image = np.zeros_like(flat)
    for at in range(0, flat.size, 16):
        place = at
        for bit in range(swizzle):
            place ^= (at >> (7 + bit) & 1) << (4 + bit)
        image[place : place + 16] = flat[at : at + 16]
    return image


def box_of(tensor, at, box):
    """The box at these coordinates (innermost first), zeros outside; and which of it is inside."""
    values = np.zeros(box[::-1], tensor.dtype)
    inside = np.zeros(box[::-1], bool)
    for index in np.ndindex(*box[::-1]):
        place = tuple(start + i for start, i in zip(at[::-1], index, strict=True))
        if all(0 <= i < extent for i, extent in zip(place, tensor.shape, strict=True)):
            values[index], inside[index] = tensor[place], True
    return values, inside


def tiled_map(tensor, box, swizzle):
    """A map of a dense array of uint8, float16 or float32."""
    rank = tensor.ndim
    tensor_map = aligned(128)
    dtype = cuda_emulator.DTYPES.index(tensor.dtype.name)
    error = cuda_emulator.library().emulate_tiled_map(
        *(ctypes.c_void_p(tensor_map.ctypes.data), dtype, ctypes.c_void_p(tensor.ctypes.data)),
        *(rank, (ctypes.c_uint64 * rank)(*tensor.shape[::-1])),
        (ctypes.c_uint64 * rank)(*tensor.strides[-2::-1]),
        *((ctypes.c_uint32 * rank)(*box), swizzle),
    )
    assert error is None, error
    return tensor_map


# rank: extents of the array, box (innermost first), where the box starts
TILES = {
    2: ((13, 40), (16, 8), [(0, 0), (32, 9), (-8, -3), (24, 2), (64, 0)]),
    3: ((3, 7, 16), (16, 4, 2), [(0, 0, 0), (8, 5, 2), (-4, -1, -1)]),
    4: ((2, 3, 4, 24), (16, 2, 3, 2), [(0, 0, 0, 0), (16, 3, 1, 1), (-8, -1, 2, -1)]),
    5: ((2, 2, 3, 2, 16), (16, 2, 2, 2, 1), [(0, 0, 0, 0, 0), (8, 1, 2, 1, 1), (0, 0, -1, 0, 2)]),
}


@pytest.mark.parametrize("swizzle", SWIZZLES, ids=lambda swizzle: f"swizzle-{SWIZZLES[swizzle]}")
@pytest.mark.parametrize("rank", TILES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tensor_copies_of_tiles(rank, dtype, swizzle):
    extents, box, places = TILES[rank]
    size = np.dtype(dtype).itemsize
    if swizzle:  # the innermost line fills the swizzle's span
        box = (SWIZZLES[swizzle] // size, *box[1:])
    count = int(np.prod(extents))
    bytes_in_box = int(np.prod(box)) * size
    for at in places:
        tensor = aligned(count, dtype)
        tensor[:] = np.random.default_rng(0).integers(-99, 99, count)
        tensor = tensor.reshape(extents)
        values, inside = box_of(tensor, at, box)
        image = in_shared_memory(values.reshape(-1).view(np.uint8), swizzle)
        tensor_map = tiled_map(tensor, box, swizzle)
        numbers = (bytes_in_box, *at)
        loaded = run(
            f"load_tile {rank}", None, aligned(bytes_in_box), numbers, tensor_map, read=(tensor,)
        )
        np.testing.assert_array_equal(loaded, image)

        # Stored, the box comes back to where it is inside, and nothing else is touched
        values[...] = np.random.default_rng(1).integers(-99, 99, values.shape)
        source = aligned(bytes_in_box)
        source[:] = in_shared_memory(values.reshape(-1).view(np.uint8), swizzle)
        expected = tensor.copy()
        for index in np.argwhere(inside):
            place = tuple(start + i for start, i in zip(at[::-1], index, strict=True))
            expected[place] = values[tuple(index)]
        run(f"store_tile {rank}", source, None, numbers, tensor_map, write=(tensor,))
        np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("swizzle", [0, 1])
@pytest.mark.parametrize(
    ("window", "dilation", "stride", "padding"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((2, 3), (2, 1), (2, 1), (0, 1)),
        ((1, 1), (1, 1), (1, 2), (0, 0)),
    ],
)
def test_tensor_copies_of_windows(window, dilation, stride, padding, swizzle):
    """Every tap of a convolution, as im2col mode delivers it: channels per output pixel."""
    N, H, W, C = 2, 5, 6, 16
    (R, S), (dilation_h, dilation_w) = window, dilation
    channels = 8 if swizzle == 0 else 16
    P = (H + 2 * padding[0] - dilation_h * (R - 1) - 1) // stride[0] + 1
    Q = (W + 2 * padding[1] - dilation_w * (S - 1) - 1) // stride[1] + 1
    tensor = aligned(N * H * W * C, np.float16)
    tensor[:] = np.random.default_rng(0).integers(-99, 99, tensor.size)
    tensor = tensor.reshape(N, H, W, C)
    pixels, first = 16, 3
    # The box holds the first tap's place of every output pixel.
    lower = (-padding[1], -padding[0])
    upper = (padding[1] - dilation_w * (S - 1), padding[0] - dilation_h * (R - 1))
    tensor_map = aligned(128)
    error = cuda_emulator.library().emulate_window_map(
        *(ctypes.c_void_p(tensor_map.ctypes.data), cuda_emulator.DTYPES.index("float16")),
        *(ctypes.c_void_p(tensor.ctypes.data), (ctypes.c_uint64 * 4)(C, W, H, N)),
        (ctypes.c_uint64 * 3)(*tensor.strides[2::-1]),
        *((ctypes.c_int * 4)(*lower, *upper), (ctypes.c_uint32 * 2)(stride[1], stride[0])),
        *(channels, pixels, swizzle),
    )
    assert error is None, error
    size = pixels * channels * 2
    for r, s in itertools.product(range(R), range(S)):
        expected = np.zeros((pixels, channels), np.float16)
        for i in range(pixels):
            n, p, q = (first + i) // (P * Q), (first + i) // Q % P, (first + i) % Q
            h = p * stride[0] - padding[0] + r * dilation_h
            w = q * stride[1] - padding[1] + s * dilation_w
            if n < N and 0 <= h < H and 0 <= w < W:
                expected[i] = tensor[n, h, w, C - channels :]
        p, q = first // Q, first % Q
        at = (C - channels, q * stride[1] - padding[1], p * stride[0] - padding[0], 0)
        numbers = (size, *at, s * dilation_w, r * dilation_h)
        loaded = run("load_window_tile", None, aligned(size), numbers, tensor_map, read=(tensor,))
        image = in_shared_memory(expected.reshape(-1).view(np.uint8), swizzle)
        np.testing.assert_array_equal(loaded, image)


def factor_in_shared_memory(matrix, rows_inner, span):
    """A factor [rows, 16 terms] by the manual's canonical layouts; also leading, stride, start."""
    rows, _ = matrix.shape
    lines = 8  # of a core matrix
    start = 0
    image = np.zeros(64 * 1024, np.uint8)
    leading, stride = 16, 8 * (span or 0)
    if not span:
        # Core matrices of 8 x 16 bytes, with room between them
        leading, stride = (128, 256 + 16) if not rows_inner else (128 * (rows // 8) + 64, 128)
    elif rows_inner:
        leading = 2 * stride
    elif span > 32:
        start = 32  # the second 16 terms of a line
    for row in range(rows):
        for term in range(16):
            inner, outer = (row, term) if rows_inner else (term, row)
            if not span:
                at = outer % lines * 16 + inner % 8 * 2
                blocks = (inner // 8, outer // lines)
                steps = (stride, leading) if rows_inner else (leading, stride)
                at += blocks[0] * steps[0] + blocks[1] * steps[1]
            else:
                of_span = span // 2
                at = start + outer % lines * span + inner % of_span * 2
                at += inner // of_span * leading + outer // lines * stride
                at ^= (at >> 7 & span // 16 - 1) << 4
            image[at : at + 2].view(matrix.dtype)[0] = matrix[row, term]
    used = np.flatnonzero(image).max() + 1
    return image[: -(-used // 1024) * 1024], leading, stride, start


SPANS = {0: None, 1: 128, 2: 64, 3: 32}  # of a matrix descriptor


@pytest.mark.parametrize("span", SPANS, ids=lambda mode: f"swizzle-{SPANS[mode]}")
@pytest.mark.parametrize("majors", ["KK", "KM", "MK", "MM", "RK", "RM"])
@pytest.mark.parametrize("columns", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_wgmma(dtype, columns, majors, span):
    random = np.random.default_rng(0)
    element = np.dtype(getattr(ml_dtypes, dtype, dtype))
    a = random.integers(1, 5, (64, 16)) * random.choice([-1, 1], (64, 16))
    b = random.integers(1, 5, (columns, 16)) * random.choice([-1, 1], (columns, 16))
    a_image, *a_layout, a_start = factor_in_shared_memory(
        a.astype(element), majors[0] == "M", SPANS[span]
    )
    if majors[0] == "R":  # four 32-bit registers of each thread, as of mma.m16n8k16
        a_image = np.zeros((128, 4, 2), element)
        for thread, register, half in np.ndindex(128, 4, 2):
            row = thread // 32 * 16 + thread % 32 // 4 + register % 2 * 8
            a_image[thread, register, half] = a[row, thread % 4 * 2 + half + register // 2 * 8]
        a_image = np.concatenate([a_image.reshape(-1).view(np.uint8), np.zeros(1024, np.uint8)])
        a_image = a_image[: 128 * 16 // 1024 * 1024]
    b_image, *b_layout, b_start = factor_in_shared_memory(
        b.astype(element), majors[1] == "M", SPANS[span]
    )
    source = aligned(a_image.size + b_image.size)
    source[: a_image.size], source[a_image.size :] = a_image, b_image
    numbers = (a_image.size, source.size, *a_layout, span, *b_layout, span, a_start, b_start)
    result = run(
        f"product {dtype} {columns} {majors}", source, aligned(64 * columns, np.float32), numbers
    ).reshape(128, columns // 2)
    sums = np.zeros((64, columns))
    for thread, i in np.ndindex(*result.shape):
        row = thread // 32 * 16 + i // 2 % 2 * 8 + thread % 32 // 4
        sums[row, i // 4 * 8 + thread % 4 * 2 + i % 2] = result[thread, i]
    np.testing.assert_array_equal(sums, 2 * (a @ b.T))


def test_named_barriers_part_a_block():
    source = random_bytes(4 * 128 * 3)
    result = run("named barriers", source, aligned(4 * 128 * 3), [3]).view(np.uint32)
    expected = source.view(np.uint32).reshape(3, 128)[:, ::-1]
    np.testing.assert_array_equal(result.reshape(3, 128), expected)


def test_one_lane_of_each_warp_is_elected():
    elected = run("elect", None, aligned(64 * 4)).view(np.uint32).reshape(2, 32)
    np.testing.assert_array_equal(elected.sum(1), [1, 1])


def test_registers_move_between_warpgroups():
    run("registers", None, aligned(384 * 4))


NOT_WAITED = "that an asynchronous copy is writing: it was not waited for"
PLANTED = {
    "cp.async": None,
    "cp.async: no wait": NOT_WAITED,
    "cp.async: waits for too few": NOT_WAITED,
    "cp.async: no barrier": "no thread of the block wrote|" + NOT_WAITED,
    "cp.async: no commit": NOT_WAITED,
    "cp.async: misaligned": "cp.async: access not aligned to its size",
    "ring": None,
    "ring: no wait for the phase": NOT_WAITED + "|no thread of the block wrote",
    "ring: wrong parity": NOT_WAITED + "|no thread of the block wrote",
    "ring: bytes that never come": "deadlock: .*mbarrier at byte 256 .* lacks 0 arrivals and 256 b",
    "ring: too many arrivals": "mbarrier: more arrivals|mbarrier: two phases passed",
    "ring: initialisation not fenced": "missing fence.mbarrier_init",
    "ring: reused too early": "mbarrier: more arrivals",
    "store": None,
    "store: no proxy fence": "missing fence.proxy.async",
    "store: no wait": "an asynchronous operation was not waited for, and reads it",
    "swizzle": None,
    "swizzle: wrong": "",
    "swizzle: alignment": "not aligned to what the swizzle repeats after",
    "wgmma": None,
    "wgmma: no proxy fence": "missing fence.proxy.async",
    "wgmma: no wait": "touches sums of wgmma before wgmma.wait_group",
    "wgmma: no fence": "missing wgmma.fence",
    "wgmma: wrong stride": "no thread of the block wrote",
    "wgmma: behind the end": "out-of-bounds access to shared memory|no thread of the block wrote",
    "wgmma: factor overwritten": "an asynchronous operation was not waited for, and reads it",
    "wgmma: a warp misses": "not all threads of the warpgroup",
    "named barrier": None,
    "named barrier: missing": "race in shared memory|no thread of the block wrote",
    "mbarrier not initialised": "used where none was initialised",
}


@pytest.mark.parametrize("name", PLANTED, ids=lambda name: name.replace(" ", "-"))
def test_planted_bugs_are_caught(name):
    source = aligned(16384)
    source[:] = np.random.default_rng(0).integers(-3, 4, 8192).astype(np.float16).view(np.uint8)
    tensor = source[:4096].view(np.float16).reshape(64, 32)
    tensor_map = tiled_map(tensor, (32, 64), 2)
    result = aligned(16384)
    message = PLANTED[name]
    if message:
        with pytest.raises(EmulationError, match=message) as caught:
            run(name, source, result, tensor_map=tensor_map)
        assert "_kernel" in str(caught.value), "the message names the kernel"
        assert "planted_asynchronous.cu:" in str(caught.value).rsplit("thread", 1)[1]
        return
    run(name, source, result, tensor_map=tensor_map)
    words = source.view(np.uint32)
    expected = {
        "cp.async": words[63::-1].copy().view(np.uint8),
        "ring": source[:512],
        "store": source[:512],
        "swizzle": source[:4096],
        "named barrier": words[63::-1].copy().view(np.uint8),
    }
    key = name.partition(":")[0]
    if key in expected:
        same = np.array_equal(result[: expected[key].size], expected[key])
        assert same == (message is None), "a wrong swizzle shows in the result"
