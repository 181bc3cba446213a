"""What is in use: versions, instruction sets, devices, threads."""

from __future__ import annotations

from typing import Any

from fastconv import _backend, _native
from fastconv._torch_private import HAS_TORCH, torch
from fastconv._version import __version__


def show_config() -> dict[str, Any]:
    """Prints what fastconv runs on, and returns it.

    Returns:
        version, backend, compiled (True, or why not), isa and isas available, CUDA architectures
        and devices, torch's version (None without) and whether its kernels are loaded, threads.

    Example:
        >>> import fastconv
        >>> fastconv.show_config()["version"] == fastconv.__version__  # doctest: +ELLIPSIS
        fastconv ...
        True
    """
    core = _native.core
    config: dict[str, Any] = {
        "version": __version__,
        "backend": _backend.current,
        "compiled": _native.failure or "yes",
        "isa": core.isa() if core else None,
        "isas available": core.available_isas() if core else [],
        "isas compiled": core.compiled_isas() if core else [],
        "cuda archs": core.cuda_archs() if core else [],
        "cuda devices": core.cuda_device_count() if core else 0,
        "torch": torch.__version__ if HAS_TORCH else None,
        "torch ABI": "stable, built for torch >= 2.10" if _native.torch_is_loaded else None,
        "threads": core.num_threads() if core else _threads(),
    }
    width = max(map(len, config))
    title, *lines = (f"{key:{width}}  {_text(value)}" for key, value in config.items())
    print("fastconv " + __version__, *lines, sep="\n  ")
    del title
    return config


def _threads() -> int | None:
    if HAS_TORCH and _backend.current == "torch":
        return torch.get_num_threads()
    if _backend.current == "numba":
        import numba

        return int(numba.get_num_threads())
    return 1


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
