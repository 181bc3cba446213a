"""fastconv in place of torch's own kernels, for programs that know nothing of it."""

from __future__ import annotations

import ctypes
import functools
import threading
from types import TracebackType
from typing import Any

from fastconv import _native
from fastconv import _torch_private as private
from fastconv._torch_private import torch

_NAMES = ("convolution", "convolution_backward")  # of aten: csrc/torch_override.cpp
_lock = threading.Lock()
_is_on = False
_libraries: list[Any] = []  # whose ops live as long as they


@functools.cache
def _switch() -> Any:
    """The compiled switch; before its first use, ops that call the kernels which torch has now."""
    library = private.new_library("fastconv", "FRAGMENT")
    for name in _NAMES:
        schema = str(getattr(torch.ops.aten, name).default._schema)
        library.define("torch_" + schema.removeprefix("aten::"))
        library.impl(f"torch_{name}", private.cpu_kernel(f"aten::{name}"), "CPU")
    _libraries.append(library)
    return ctypes.CDLL(_native.torch_library_path()).fastconv_override_torch


def _set(on: bool) -> bool:
    """Turns the kernels on or off; returns what was before."""
    global _is_on
    with _lock:
        before = _is_on
        if on != before:
            if _switch()(int(on)):
                raise RuntimeError("enable: torch refused the kernels")
            _is_on = on
        return before


class Enabled:
    """What :func:`enable` returns: as a context manager, it ends with its block."""

    def __init__(self, before: bool) -> None:
        self._before = before

    def __enter__(self) -> Enabled:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _set(self._before)


def enable() -> Enabled:
    """Lets fastconv compute torch's own convolutions on the CPU, in any program.

    From here on ``torch.nn.functional.conv2d``, ``torch.nn.Conv2d`` and whatever else ends in
    ``aten::convolution`` are computed by fastconv, forward and backward, until :func:`disable`, or
    the end of a ``with`` block. Autograd, vmap, autocast, ``torch.compile`` and exceptions are
    torch's own, unchanged. What fastconv has no faster kernel for (1-d, 3-d and transposed
    convolutions, integers, other devices) is computed by torch as before. It holds for all threads.

    Returns:
        A context manager that restores what was before. It need not be used.

    Raises:
        RuntimeError: fastconv runs without its compiled part.

    Example:
        >>> import torch
        >>> import fastconv
        >>> image, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
        >>> with fastconv.enable():
        ...     torch.nn.functional.conv2d(image, weight).shape
        torch.Size([1, 4, 6, 6])
    """
    if not _native.torch_is_loaded:
        raise RuntimeError("enable: expected fastconv's compiled part, got a build without it")
    return Enabled(_set(True))


def disable() -> None:
    """Undoes :func:`enable`: torch computes its own convolutions again.

    Example:
        >>> import fastconv
        >>> _ = fastconv.enable()
        >>> fastconv.disable()
    """
    if _is_on:
        _set(False)
