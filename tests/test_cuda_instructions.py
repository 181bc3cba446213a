"""Law: the emulated device carries out every wrapped instruction as the PTX manual states it.

What a kernel of tests/cuda_emulator/probe_*.cu leaves behind is compared with the manual's layout,
written out here once more.
https://docs.nvidia.com/cuda/parallel-thread-execution/
"""

import itertools
import re
from pathlib import Path

import cuda_emulator
import ml_dtypes
import numpy as np
import pytest
from cuda_emulator.probing import aligned, random_bytes, run, tiled_map, window_map

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC, which is not here"
)

HERE = Path(__file__).resolve().parent
# What the wrappers themselves are made of.
INSIDE = {"pin", "multiply_matrices", "multiply_registers", "shared_address"}


@pytest.mark.parametrize(
    "header", sorted((HERE.parent / "kernels/cuda").glob("device*.cuh")), ids=lambda path: path.name
)
def test_every_wrapper_has_a_double_and_a_probe(header):
    wrapper = r"__device__ __forceinline__ [\w ]+[*&]? ?\b(\w+)\("
    names = set(re.findall(wrapper, header.read_text())) - INSIDE
    double = (HERE / "cuda_emulator/include/kernels/cuda" / header.name).read_text()
    probes = "".join(path.read_text() for path in (HERE / "cuda_emulator").glob("probe_*.cu"))
    assert names
    for name in names:
        assert re.search(rf"\b{name}\(", double), f"{name} has no double"
        assert re.search(rf"\b{name}\b[<(]", probes), f"no probe calls {name}"


SWIZZLES = {0: None, 1: 32, 2: 64, 3: 128}  # CUtensorMapSwizzle: bytes of its span


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
    tensor_map = window_map(tensor, (lower, upper), stride[::-1], channels, pixels, swizzle)
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


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    source = random_bytes(512)
    tiles = source.view(np.uint16).reshape(4, 8, 8)  # lane l's address: row l % 8 of tile l / 8
    expected = np.zeros((32, 4, 2), np.uint16)
    for lane, tile, half in np.ndindex(expected.shape):
        row, column = lane // 4, lane % 4 * 2 + half
        place = (column, row) if transposed else (row, column)
        expected[lane, tile, half] = tiles[tile][place]
    result = run("ldmatrix.trans" if transposed else "ldmatrix", source, aligned(512))
    np.testing.assert_array_equal(result.view(np.uint16).reshape(expected.shape), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mma(dtype):
    random = np.random.default_rng(0)
    a, b, c = (random.integers(-4, 5, size) for size in ((16, 16), (16, 8), (16, 8)))
    source = aligned(32 * 40)
    words = source.view(getattr(ml_dtypes, dtype, dtype)).reshape(32, 10, 2)
    sums = source.view(np.float32).reshape(32, 10)
    expected = np.zeros((32, 4), np.float32)
    for lane in range(32):
        group, pair = lane // 4, lane % 4
        for i, half in np.ndindex(4, 2):
            words[lane, i, half] = a[group + i % 2 * 8, pair * 2 + half + i // 2 * 8]
        for i, half in np.ndindex(2, 2):
            words[lane, 4 + i, half] = b[pair * 2 + half + i * 8, group]
        for i in range(4):
            place = group + i // 2 * 8, pair * 2 + i % 2
            sums[lane, 6 + i], expected[lane, i] = c[place], (a @ b + c)[place]
    result = run(f"mma {dtype}", source, aligned(128, np.float32)).reshape(32, 4)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0FF01235])
def test_votes_reductions_and_matches(mask):
    source = aligned(32, np.int32)
    source[:] = np.random.default_rng(mask).integers(-4, 5, 32)
    result = run("votes", source, aligned(32 * 12, np.int32, fill=0), [mask]).reshape(32, 12)
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    values, unsigned = source[lanes], source[lanes].view(np.uint32)
    ballot = sum(1 << lane for lane in lanes if source[lane] > 0)
    for lane in lanes:
        match = sum(1 << other for other in lanes if source[other] == source[lane])
        expected = [ballot, ballot != 0, ballot == mask, match]
        expected += [values.sum(), values.min(), values.max(), unsigned.max(), unsigned.min()]
        expected += [f.reduce(unsigned) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)]
        assert [int(x) & 0xFFFFFFFF for x in result[lane]] == [
            int(x) & 0xFFFFFFFF for x in expected
        ]
    outside = [lane for lane in range(32) if lane not in lanes]
    assert not result[outside].any()


def test_atomics_of_shared_and_global_memory():
    source = aligned(64, np.int32)
    source[:] = np.random.default_rng(0).integers(-99, 100, 64)
    result = run("atomics", source, aligned(12, np.int32, fill=0), scratch=True)
    for half in (result[:6], result[6:]):
        sums = [source.sum(), max(source.max(), 0), min(source.min(), 0)]
        assert half[:3].tolist() == sums
        assert half[3:4].view(np.float32)[0] == source.sum()
        assert half[4:].tolist() == [64, 7]


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_barriers_of_the_grid(rounds):
    source = aligned(320, np.int32)
    source[:] = np.random.default_rng(0).integers(0, 999, 320)
    target = aligned(1 + 3 * 320, np.int32, fill=0)
    result = run("grid", source, target, [rounds], scratch=True)
    assert result[0] == 5 * rounds
    np.testing.assert_array_equal(result[641:], np.roll(source, -64 * rounds))


def test_blocks_wait_for_each_others_counters():
    source = aligned(5, np.int32)
    source[:] = (3, 1, 4, 1, 5)
    result = run("chain", source, aligned(6, np.int32, fill=0), scratch=True)
    assert result.tolist() == [5, 3, 4, 8, 9, 14]


def test_static_shared_memory_is_the_blocks_own():
    target = aligned(1 + 96, np.int32, fill=0)
    result = run("static shared memory of blocks at once", None, target, scratch=True)
    np.testing.assert_array_equal(result[1:].reshape(3, 32), np.arange(96).reshape(3, 32)[:, ::-1])
