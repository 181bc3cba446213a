"""Law: what goes wrong with a CUDA device is said as "expected ..., got ...", and the next call
does not find it. The CUDA runtime is a stand-in that fails as asked (cuda_faults/).
"""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import native
import numpy as np
import pytest

import fastconv

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="this machine has no C++ compiler")

OUT_OF_MEMORY, BAD_LAUNCH, OLD_DRIVER, NO_DEVICE, NO_IMAGE, ILLEGAL = 2, 9, 35, 100, 209, 700


class Machine(ctypes.Structure):
    """cuda_faults/cuda_runtime.h"""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("devices", "current", "driver", "capability")),
        *((f"{name}_fails", ctypes.c_int) for name in ("count", "set", "image", "launch")),
        ("last", ctypes.c_int),
        ("blocks", ctypes.c_longlong),
        ("mode", ctypes.c_int),
    )


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("faults") / "faults.so"
    command = [COMPILER, "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{ROOT}"]
    command += [f"-I{HERE / 'cuda_faults'}", '-DFASTCONV_CUDA_ARCHS="80,90a"', "-x", "c++"]
    sources = [HERE / "cuda_faults/entries.cpp", ROOT / "kernels/cuda/info.cu"]
    subprocess.run([*command, *map(str, sources), "-o", str(target)], check=True)
    loaded = ctypes.CDLL(str(target))
    for name in ("launch", "probe"):
        getattr(loaded, f"fault_{name}").restype = ctypes.c_char_p
    loaded.fault_blocks.restype = ctypes.c_longlong
    loaded.fault_launch.argtypes = (ctypes.c_longlong, ctypes.c_int)
    return loaded


@pytest.fixture
def set_up(library):
    def machine(**differs):
        sound = {"devices": 2, "driver": 13000, "capability": 90}
        library.fault_machine(ctypes.byref(Machine(**sound | differs)))
        return library

    return machine


def text(said):
    return None if said is None else said.decode()


IMAGE = (
    "expected a CUDA device of a compute capability that this build has kernels for "
    "(sm_80, sm_90a), got 7.5"
)


@needs_compiler
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (OUT_OF_MEMORY, "expected memory enough on the CUDA device, got: out of memory"),
        (BAD_LAUNCH, "the text of CUDA"),
        (OLD_DRIVER, "expected a CUDA driver for CUDA 13.0 or later, got one for CUDA 12.4"),
        (NO_DEVICE, "expected a CUDA device, got none"),
        (101, "expected the number of one of 2 CUDA devices, got another"),
        *((code, IMAGE) for code in (98, NO_IMAGE, 222)),
        *(
            (
                code,
                "expected earlier work on the CUDA device to have succeeded, got: the text of CUDA",
            )
            for code in (214, ILLEGAL, 702, 710, 714, 715, 716, 717, 718, 719)
        ),
    ],
)
def test_a_launch_that_fails(set_up, code, said):
    library = set_up(launch_fails=code, driver=12040, capability=75)
    assert text(library.fault_launch(1, 0)) == said
    assert library.fault_last() == 0, "the next call would find the error"


@needs_compiler
def test_a_sound_launch_says_nothing(set_up):
    library = set_up()
    assert library.fault_launch(7, 0) is None
    assert library.fault_blocks() == 7
    assert library.fault_launch(0, 0) is None
    assert library.fault_blocks() == 7, "nothing was to be queued"
    assert text(library.fault_launch(2**31, 0)) == "the text of CUDA"
    assert library.fault_blocks() == 7


@needs_compiler
def test_shared_memory_that_cannot_be_had(set_up):
    library = set_up(set_fails=BAD_LAUNCH)
    assert library.fault_launch(1, 48 * 1024) is None
    assert text(library.fault_launch(1, 48 * 1024 + 1)) == "the text of CUDA"
    assert library.fault_last() == 0


@needs_compiler
def test_a_device_with_an_image_has_no_obstacle(set_up):
    library = set_up(current=1)
    assert library.fault_probe(0) is None
    assert library.fault_current() == 1, "the caller's device is current again"
    assert library.fault_mode() == 0, "the caller's capture mode is in force again"


@needs_compiler
@pytest.mark.parametrize(
    ("differs", "device", "said"),
    [
        ({"count_fails": OLD_DRIVER, "driver": 0}, 0, "for CUDA 13.0 or later, got none"),
        ({"count_fails": NO_DEVICE}, 0, "expected a CUDA device, got none"),
        ({}, 2, "expected the number of one of 2 CUDA devices, got 2"),
        ({}, -1, "expected the number of one of 2 CUDA devices, got -1"),
        ({"set_fails": ILLEGAL}, 1, "expected earlier work on the CUDA device"),
        ({"image_fails": NO_IMAGE, "capability": 75}, 0, IMAGE),
        ({"image_fails": NO_IMAGE, "capability": 120}, 1, "got 12.0"),
    ],
)
def test_an_obstacle_is_said(set_up, differs, device, said):
    library = set_up(**differs)
    assert said in text(library.fault_probe(device))
    assert (library.fault_last(), library.fault_current(), library.fault_mode()) == (0, 0, 0)


@needs_compiler
def test_devices_are_counted_and_set(set_up):
    assert set_up().fault_count() == 2
    assert set_up(count_fails=OLD_DRIVER).fault_count() == 0
    library = set_up(current=1)
    assert (library.fault_set_device(0), library.fault_current()) == (1, 0)
    assert set_up(set_fails=NO_DEVICE).fault_set_device(1) == -NO_DEVICE


# ---- The compiled part


def test_a_machine_without_a_device_says_so():
    core = native.core()
    if core.cuda_device_count():
        pytest.skip("this machine has a CUDA device")
    said = core.cuda_obstacle(0)
    assert re.fullmatch("expected .+, got .+", said)
    assert said.startswith("expected a build") == (not core.cuda_archs())


@pytest.mark.cuda
def test_a_device_that_is_served_has_no_obstacle():
    assert native.core().cuda_obstacle(0) is None
    assert "CUDA devices, got 1000" in native.core().cuda_obstacle(1000)


class OnCuda:
    """An array that says it lies on a CUDA device; nobody may read it."""

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        raise AssertionError("read")


@pytest.mark.parametrize("first", [np.ones((1, 1, 3, 3), "f4"), OnCuda()], ids=["NumPy", "DLPack"])
def test_kinds_of_arrays_that_do_not_mix_name_the_operation(first):
    core = native.core()
    error = NotImplementedError if core.cuda_archs() else RuntimeError
    with pytest.raises(error, match=r"^conv2d: expected C\w+ arrays .+, got .*cuda:0"):
        core.conv2d(first, OnCuda())
    with pytest.raises(error, match=r"^max_pool2d_backward: expected C\w+ arrays .+, got .*cuda:0"):
        core.max_pool2d_backward(first, OnCuda(), (1, 1, 3, 3))


def test_a_result_that_no_memory_holds_names_the_operation():
    torch = pytest.importorskip("torch")
    native.core()
    image = torch.ones(1, 1, 1, 1).expand(1, 1, 2**20, 2**20)
    weight = torch.ones(1, 1, 1, 1).expand(2**7, 1, 1, 1)
    law = r"^conv2d: expected memory on cpu for a result of size \[1, 128, .+ bytes\), got"
    with pytest.raises(RuntimeError, match=law), fastconv.backend("native"):
        torch.ops.fastconv.conv2d(image, weight)
