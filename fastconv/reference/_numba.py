"""Compiles a loop with Numba at its first call: importing fastconv does not import Numba."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

# Until Numba compiles a loop, `prange` in its module is this one: the loops are runnable Python.
prange = range

# Numba's work-queue threading layer aborts the process when two threads enter it at once.
_ONE_AT_A_TIME = threading.RLock()


def parallel(loop: Callable[..., None]) -> Callable[..., None]:
    """Compiles ``loop`` on its first call; its ``prange`` runs on all threads of Numba.

    Iterations of ``prange`` write disjoint outputs and sum in a fixed order: the result does not
    depend on the threads.
    """

    @functools.cache
    def compiled() -> Callable[..., None]:
        import numba

        loop.__globals__["prange"] = numba.prange
        try:
            return numba.njit(parallel=True, cache=True)(loop)
        except RuntimeError:  # no directory to keep compiled code in
            return numba.njit(parallel=True)(loop)

    @functools.wraps(loop)
    def call(*arguments: Any) -> None:
        with _ONE_AT_A_TIME:
            compiled()(*arguments)

    return call
