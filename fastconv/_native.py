"""Loads the compiled part: ``_core`` (NumPy and DLPack arrays) and ``_torch`` (kernels of the torch
ops).

Neither is required. Without them the Numba loops of ``fastconv.reference`` serve, slower, after one
warning.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from fastconv._torch_private import HAS_TORCH, torch

_TORCH_LIBRARY = Path(__file__).with_name("_torch.so")

core: ModuleType | None = None
torch_is_loaded = False
failure: str | None = None  # why the compiled part is not in use


def torch_library_path() -> str:
    """The compiled torch door: beside this file, or beside ``_core`` in an editable install."""
    candidates = [_TORCH_LIBRARY]
    if core is not None and core.__file__:
        candidates.append(Path(core.__file__).with_name(_TORCH_LIBRARY.name))
    return str(next((path for path in candidates if path.exists()), _TORCH_LIBRARY))


def load_core() -> None:
    """Imports ``fastconv._core``."""
    global core, failure
    try:
        core = importlib.import_module("fastconv._core")
    except ImportError as error:
        failure = str(error)


def load_torch_library() -> None:
    """Registers the compiled kernels of the torch ops; their schemas must be defined."""
    global torch_is_loaded, failure
    if not HAS_TORCH or core is None:
        return
    try:
        load: Callable[[str], None] = torch.ops.load_library
        load(torch_library_path())
        torch_is_loaded = True
    except OSError as error:
        failure = str(error)


def warn_if_missing(fallback: str) -> None:
    """One warning that says why the compiled part is not in use, and who serves instead."""
    if failure is not None:
        warnings.warn(
            f"fastconv runs without its compiled part ({failure}); "
            f"{fallback} serves instead, slower",
            RuntimeWarning,
            stacklevel=3,
        )
