"""Law: the emulated device catches bugs in what works on its own, with kernel, thread and line.

Each bug is planted in a kernel that is right without it: tests/cuda_emulator/, in
planted_asynchronous.cu and probe_warps.cu.
"""

import cuda_emulator
import numpy as np
import pytest
from cuda_emulator import EmulationError
from cuda_emulator.probing import aligned, run, tiled_map

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
