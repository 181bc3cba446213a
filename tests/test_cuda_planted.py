"""Law: the emulated device catches bugs, in every category, with kernel, block, thread and line.

Each bug is planted in a kernel that is right without it: tests/cuda_emulator/planted*.cu and
probe_warps.cu; those of planted.cu are run by test_cuda_emulation.py.
"""

import re

import cuda_emulator
import numpy as np
import pytest
from cuda_emulator import EmulationError
from cuda_emulator.probing import aligned, run, tiled_map, window_map

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC, which is not here"
)

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


def assert_located(caught, file):
    """The message names the kernel, the block, the thread, and the line that went wrong."""
    line = rf"kernel \w+_kernel.* \({file}:\d+\), block \d+, thread \d+, \w+.* \({file}:\d+\)$"
    assert re.search(line, str(caught.value)), str(caught.value)


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
        assert_located(caught, "planted_asynchronous.cu")
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


NOT_MET = "divergent collective: not all lanes of the mask reach it"
TWO_PLACES = "divergent collective: lanes of a warp wait at different places"
RACE = "race in shared memory: no barrier since another thread's write"
UNWRITTEN = "read of shared memory that no thread of the block wrote"
PLANTED_IN_WARPS = {
    "shuffle": None,
    "shuffle: at two places": TWO_PLACES,
    "shuffle: of a lane outside of the mask": "shuffle: the lane that it reads is not in its mask",
    "barrier of a warp": None,
    "barrier of a warp: missing": RACE,
    "barrier of a warp: too few lanes": RACE,
    "barrier in a loop": None,
    "barrier in a loop: fewer rounds": "divergent barrier: not all threads of the block reach it",
    "barrier of two warps": None,
    "barrier of two warps: four halves": "divergent barrier: not all lanes of a warp",
    "static array": None,
    "static array: unwritten": UNWRITTEN,
    "static array: overrun": "index out of the bounds of an array",
    "array of a struct": None,
    "array of a struct: overrun": "index out of the bounds of an array",
    "pairs": None,
    "pairs: misaligned": "access not aligned to its type",
    "results read back": None,
    "results read back: unwritten": "read of a result that nobody wrote",
    "results read back: another block's": "read of a result that another block wrote",
    "rows of ldmatrix": None,
    "rows of ldmatrix: at two places": TWO_PLACES,
    "rows of ldmatrix: unwritten": UNWRITTEN,
    "rows of ldmatrix: overrun": "out-of-bounds access to shared memory",
    "rows of ldmatrix: misaligned": "access not aligned to its size",
    "rows of ldmatrix: no barrier": RACE,
    "one lane": None,
    "one lane: half a warp asks": NOT_MET,
    "setmaxnreg": None,
    "setmaxnreg: one lane": NOT_MET,
    "setmaxnreg: three warps": "setmaxnreg: not all warps of the warpgroup reach it",
    "neighbour's copy": None,
    "neighbour's copy: waited for behind the barrier": NOT_WAITED,
    "product": None,
    "product: starts at the second row": "wgmma: the matrix does not start where its swizzle does",
    "product: no commit": "touches sums of wgmma before wgmma.wait_group",
    "product: one lane waits": "touches sums of wgmma before wgmma.wait_group",
    "new mbarrier": None,
    "new mbarrier: no barrier": "no barrier since the mbarrier's initialisation",
    "bulk copy over what was read": None,
    "bulk copy over what was read: no barrier": NOT_WAITED,
    "bulk copy over what was read: misaligned": "addresses and bytes must be multiples of 16",
    "bulk copy over what was read: overrun": "out-of-bounds read of 65536 bytes",
    "bulk store": None,
    "bulk store: no commit": "the block ended while an asynchronous store",
    "bulk store: no wait": "the block ended while an asynchronous store",
}


@pytest.mark.parametrize("name", PLANTED_IN_WARPS, ids=lambda name: name.replace(" ", "-"))
def test_planted_bugs_of_warps_and_arrays_are_caught(name):
    source, result = aligned(16384, fill=1), aligned(16384)
    message = PLANTED_IN_WARPS[name]
    if message is None:
        run(name, source, result)
        return
    with pytest.raises(EmulationError, match=message) as caught:
        run(name, source, result)
    assert_located(caught, "planted_warps.cu")


def test_what_lies_between_the_elements_of_a_view_is_out_of_bounds():
    """In the kernel `shuffle`, 64 words are read and written one after the other."""
    dense, sparse = aligned(256, np.uint32, fill=1), aligned(512, np.uint32, fill=1)[::2]
    for source, result in ((dense, sparse), (sparse, dense.copy())):
        with pytest.raises(EmulationError, match="access to what lies between the elements"):
            run("shuffle", source, result)


def test_offsets_of_im2col_mode_have_8_bits():
    tensor = aligned(2 * 5 * 6 * 16, np.float16).reshape(2, 5, 6, 16)
    tensor_map = window_map(tensor, ((0, 0), (0, 0)), (1, 1), 8, 16, 0)
    with pytest.raises(EmulationError, match="an offset of im2col mode, in four"):
        run(
            "load_window_tile", None, aligned(256), (256, 0, 0, 0, 0, 256, 0), tensor_map, (tensor,)
        )


def test_planted_bugs_of_atomics_and_grids_are_caught():
    source = aligned(320, np.int32, fill=0)
    with pytest.raises(EmulationError, match="race in shared memory"):
        run("atomics: no barrier", source, aligned(64, np.int32))
    target = aligned(1 + 3 * 320, np.int32, fill=0)
    with pytest.raises(EmulationError, match="deadlock: threads wait for others"):
        run("grid: blocks one after the other", source, target, [1], scratch=True)


MAP_FAULTS = {
    "data not a multiple of 16 bytes": {"moved": 8},
    "lines not a multiple of 16 bytes apart": {"extents": (8, 12)},
    "box of no elements": {"box": (0, 8)},
    "box of more than 256": {"box": (8, 257)},
    "line of the box not a multiple of 16 bytes": {"box": (4, 8)},
    "line of the box longer than the swizzle": {"box": (32, 8), "swizzle": 1},
}


@pytest.mark.parametrize("fault", MAP_FAULTS, ids=lambda name: name.replace(" ", "-"))
def test_tensor_maps_that_the_driver_refuses(fault):
    how = {"moved": 0, "extents": (8, 32), "box": (8, 8), "swizzle": 0, **MAP_FAULTS[fault]}
    room = aligned(4096)[how["moved"] :][: 2 * int(np.prod(how["extents"]))]
    tensor = room.view(np.float16).reshape(how["extents"])
    with pytest.raises(AssertionError, match="the CUDA driver refused a tensor map"):
        tiled_map(tensor, how["box"], how["swizzle"])
