"""The CUDA kernels, compiled by the host compiler and run on an emulated device: see emulator.h."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = [
    *("-std=c++17", "-g", "-fPIC", "-fno-strict-aliasing"),
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-attributes", "-Wno-psabi", "-Werror"),
    *("-I", str(HERE / "include"), "-I", str(HERE), "-I", str(ROOT)),
]
# Every access of a kernel becomes a call, which memory.cpp answers: no sanitizer's runtime is used.
# More than -O1 would fold the device's own accesses into the kernel's.
INSTRUMENTED = [
    *("-x", "c++", "-O1", "-fsanitize=kernel-address"),
    *("--param", "asan-instrumentation-with-call-threshold=0"),
    *("--param", "asan-globals=0", "--param", "asan-stack=0"),
    "-fsanitize=alignment,bounds-strict",
]
DTYPES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("uint8", "int8", "int16", "int32", "int64"),
)  # in the order of kernels/dtype.h


class EmulationError(Exception):
    """A kernel did what no kernel may do."""


def compiler() -> str | None:
    """A GCC (Clang spells the instrumentation otherwise), or None."""
    for name in (os.environ.get("CXX"), "g++"):
        path = name and shutil.which(name)
        if path and "Free Software Foundation" in _output([path, "--version"]):
            return path
    return None


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _kernels() -> list[Path]:
    return [path for path in sorted((ROOT / "kernels/cuda").glob("*.cu")) if path.stem != "info"]


def _rooms() -> list[Path]:
    """csrc/ without its doors."""
    doors = ("array_door", "python_module", "torch_")
    rooms = sorted((ROOT / "csrc").glob("*.cpp"))
    return [path for path in rooms if not path.stem.startswith(doors)]


def _digest() -> str:
    """Of everything that the library is made from."""
    digest = hashlib.sha256(repr(FLAGS + INSTRUMENTED).encode())
    patterns = ("kernels/*.h", "kernels/cuda/*", "csrc/*", "tests/cuda_emulator/**/*")
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> Path:
    """Compiles emulator and kernels into one library; a finished one is kept for the next run."""
    folder = Path(tempfile.gettempdir()) / f"fastconv_cuda_emulator_{os.getuid()}"
    library = folder / f"{_digest()}.so"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=folder) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes, one compiles
        if library.is_file():
            return library

        def compile_one(source: Path) -> Path:
            kind = INSTRUMENTED if source.suffix == ".cu" else ["-O2", "-DFASTCONV_HAS_CUDA"]
            target = Path(scratch) / f"{source.name}.o"
            command = [compiler(), *FLAGS, *kind, "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(
                pool.map(
                    compile_one,
                    [*_kernels(), *_rooms(), *sorted(HERE.glob("*.c*"), key=lambda p: p.name)],
                )
            )
        linked = Path(scratch) / "library.so"
        # fastconv's own library may be loaded, too: each calls its own functions.
        link = [compiler(), "-shared", "-Wl,-Bsymbolic,-z,defs", *map(str, objects)]
        link += ["-o", str(linked)]
        subprocess.run(link, check=True)
        linked.replace(library)
    return library


@cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build()))
    loaded.emulator_set_capability.argtypes = (ctypes.c_int,)
    loaded.emulator_register.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p),
    )
    loaded.emulator_threads_run.restype = loaded.emulator_launches.restype = ctypes.c_uint64
    loaded.emulator_limit_launches.argtypes = (ctypes.c_int64,)
    loaded.emulator_last_kernel.restype = ctypes.c_size_t
    for name in (
        *("emulate_conv2d", "emulate_conv2d_input_grad", "emulate_conv2d_weight_grad"),
        *("emulate_avg_pool2d", "emulate_avg_pool2d_backward"),
        *("emulate_adaptive_avg_pool2d", "emulate_adaptive_avg_pool2d_backward"),
        *("emulate_max_pool2d", "emulate_max_pool2d_backward", "emulate_planted", "planted_name"),
        *("emulate_max_unpool2d", "emulate_max_unpool2d_backward"),
        "emulate_adaptive_max_pool2d",
        *("emulate_probe", "emulate_tiled_map", "emulate_window_map", "emulate_operation"),
    ):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


def _located(text: str) -> str:
    """Replaces @offset by function, file and line."""

    def locate(match: re.Match[str]) -> str:
        lines = _output(["addr2line", "-Cfi", "-e", str(build()), match[1]]).splitlines()
        frames = list(
            zip(lines[::2], lines[1::2], strict=False)
        )  # the innermost inlined call first
        # What stands in for CUDA's headers is the device; the kernel is who called it.
        own = [frame for frame in frames if str(HERE / "include") not in frame[1]] or frames
        if not own:
            return match[0]
        function, line = own[0]
        name = re.sub(
            r"\(anonymous namespace\)::|<unnamed>::|fastconv::cuda::|^void ", "", function
        )
        name = re.sub(r"\(\w+\)(?=\d)", "", name)  # a cast in a template argument
        line = re.sub(r" \(discriminator \d+\)", "", Path(line).name)
        return f"{name.partition('(')[0]} ({line})"

    return re.sub(r"@([0-9a-f]+)", locate, text)


@contextmanager
def capability(major_minor: int) -> Iterator[None]:
    """Within it, the device is of this compute capability, such as 90."""
    library().emulator_set_capability(major_minor)
    try:
        yield
    finally:
        library().emulator_set_capability(80)


def last_kernel() -> str:
    """The name, without template arguments, of the kernel of the last launch."""
    return _located(f"@{library().emulator_last_kernel():x}").partition("<")[0].partition(" ")[0]


def _bounds(array: np.ndarray) -> tuple[int, int]:
    """The first address of an array's elements, and the first behind them."""
    try:
        from numpy.lib.array_utils import byte_bounds
    except ImportError:  # NumPy 1
        from numpy import byte_bounds
    return byte_bounds(array)


def _elements(array: np.ndarray, begin: int, size: int) -> np.ndarray | None:
    """Which of `size` bytes belong to elements; None: all, or too many to ask."""
    if size > 1 << 24 or (array.nbytes == size and 0 not in array.strides):
        return None
    owned = np.zeros(size, np.uint8)
    offset = array.ctypes.data - begin
    shape, strides = (*array.shape, array.itemsize), (*array.strides, 1)
    np.ndarray(shape, np.uint8, owned, offset, strides)[...] = 1
    return None if owned.all() else owned


def call(
    entry: str, *arguments: object, read: tuple = (), write: tuple = (), scratch: tuple = ()
) -> None:
    """Calls an entry; its kernels may touch nothing but the elements of the arrays named here.

    Elements of `write` are written once, those of `scratch` as often as a kernel likes; nobody may
    touch what lies between the elements of a view. Arrays
    among the arguments are passed as pointers to their first element, None as null.
    """
    emulator = library()
    kept = []
    for kind, arrays in enumerate((read, write, scratch)):
        for array in arrays:
            begin, end = _bounds(array)
            kept.append(_elements(array, begin, end - begin))
            owned = None if kept[-1] is None else kept[-1].ctypes.data
            emulator.emulator_register(begin, end - begin, kind, owned)
    pointers = [
        ctypes.c_void_p(argument.ctypes.data) if isinstance(argument, np.ndarray) else argument
        for argument in arguments
    ]
    try:
        error = getattr(emulator, entry)(*pointers)
    finally:
        emulator.emulator_forget_all()
    if error is not None:
        raise EmulationError(_located(error.decode()))
