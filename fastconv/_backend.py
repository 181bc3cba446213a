"""Who computes: ``fastconv.backend(name)`` for the whole process.

* native: the compiled kernels. Where they lack a CUDA device (a build without CUDA, or none for
  its compute capability) torch's own functions serve torch tensors, Numba the ops and arrays.
* numba: compiled Python loops, on CUDA devices by Numba's CUDA target.
* numpy: the reference.
* torch: torch's own functions.

For torch tensors the switch is torch's own dispatch table: a backend registers its Python kernels
over the compiled ones, so that eager calls, compiled graphs and autograd obey it alike.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from types import TracebackType
from typing import Any

from fastconv import _native
from fastconv._torch_private import HAS_TORCH, KernelTable, constant_when_traced, torch

NAMES = ("native", "numba", "numpy", "torch")

_lock = threading.RLock()
_table: KernelTable | None = None  # the Python kernels in force; None when the compiled ones serve
current = ""
# fastconv._core while it serves NumPy and DLPack arrays.
array_core: Any = None


class Switch:
    """What :func:`backend` returns: leaving its ``with`` block takes its choice back.

    Blocks of several threads may overlap: the youngest choice that still stands is in force.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread = threading.get_ident()
        self.entered = False

    def __enter__(self) -> None:
        self.entered = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _lock:
            if self in _choices:
                # Choices made inside of the block without a block of their own end with it.
                inside = _choices[_choices.index(self) :]
                for each in inside:
                    if each is self or (not each.entered and each.thread == self.thread):
                        _choices.remove(each)
            use(_choices[-1].name)


# Those that stand, youngest last. The first is what the process began with, or a later setting.
_choices: list[Switch] = []


def choose(name: str) -> Switch:
    """Makes ``name`` serve until the result's ``with`` block ends, or for good if it has none."""
    with _lock:
        use(name)
        choice = Switch(name)
        if not any(each.entered for each in _choices):
            del _choices[:-1]  # where no block can end, only the last can come back
        _choices.append(choice)
        return choice


def use(name: str) -> None:
    """Makes ``name`` serve every call of the process."""
    global _table, current, array_core
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
    if name == "native" and _native.core is None:
        raise RuntimeError(f"backend: expected the compiled part, got none ({_native.failure})")
    if name == "torch" and not HAS_TORCH:
        raise RuntimeError("backend: expected torch to be installed, got none")
    if name == "numba" and not _has_numba():
        raise RuntimeError("backend: expected Numba to be installed, got none")
    with _lock:
        if name == current:
            return
        if _table is not None:
            _table.close()
            _table = None
        if HAS_TORCH:
            _table = _python_kernels(name)
        current = name
        array_core = _native.core if name == "native" else None


@constant_when_traced
def serves_cuda(device: int) -> bool:
    """Whether the backend in use has kernels for that CUDA device, on which something lies."""
    return current != "native" or _obstacle(device) is None


def has_kernels(tensor: Any) -> bool:
    """Whether the device of a torch tensor is served: the CPU is, meta tensors are."""
    device = tensor.device.type
    if device == "cuda":
        return serves_cuda(tensor.device.index)
    return device in ("cpu", "meta")


@functools.cache
def _obstacle(device: int) -> str | None:
    text: str | None = _native.core.cuda_obstacle(device) if _native.core is not None else None
    return text


def _python_kernels(name: str) -> KernelTable | None:
    """The kernels that hide compiled ones; None where all of those serve."""
    from fastconv.ops._define import OPS
    from fastconv.ops._kernels import make_kernel

    devices = ["CPU", "CUDA"]
    if name == "native":
        if _native.torch_is_loaded:
            core = _native.core
            if core is None or core.cuda_archs() or torch.version.cuda is None:
                return None
            devices = ["CUDA"]
        name = fallback()
    table = KernelTable("fastconv")
    for op in OPS.values():
        for device in devices:
            table.register(op.name, make_kernel(op, name, device), device)
    return table


def fallback() -> str:
    """Who serves when the compiled part does not."""
    return "numba" if _has_numba() else "numpy"


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def backend(name: str | None = None) -> str | Switch:
    """Tells or sets who computes, for the whole process.

    Args:
        name: ``"native"`` (compiled kernels), ``"numba"``, ``"numpy"`` or ``"torch"``; None to ask
            only.

    Returns:
        The current name if asked; else a context manager that restores the former backend.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend is not available.

    Example:
        >>> import fastconv
        >>> before = fastconv.backend()
        >>> with fastconv.backend("numpy"):
        ...     print(fastconv.backend())
        numpy
        >>> fastconv.backend() == before
        True
    """
    if name is None:
        return current
    return choose(name)


def start() -> None:
    """Loads the compiled part; its absence is one warning."""
    _native.load_core()
    # Defines the schemas that the compiled kernels need.
    from fastconv.ops import register_flop_formulas

    _native.load_torch_library()
    # Where Triton is installed and not yet imported, this would import it: call it when you count.
    if HAS_TORCH and ("triton" in sys.modules or importlib.util.find_spec("triton") is None):
        register_flop_formulas()
    choose("native" if _native.core is not None else fallback())
