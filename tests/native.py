"""The compiled part: whether it is there, asked in one place."""

import os

import pytest


def core():
    """fastconv._core; skips the test without it, or fails it where FASTCONV_REQUIRE_NATIVE=1 says
    that it must be.
    """
    try:
        from fastconv import _core
    except ImportError as error:
        if os.environ.get("FASTCONV_REQUIRE_NATIVE") == "1":
            pytest.fail(f"FASTCONV_REQUIRE_NATIVE=1, but the compiled part does not load: {error}")
        pytest.skip("fastconv was installed without its compiled part")
    return _core


def is_present() -> bool:
    try:
        from fastconv import _core  # noqa: F401
    except ImportError:
        return False
    return True


def backends() -> list[str]:
    """The backends that this installation can run."""
    return [
        name for name in ("native", "numba", "numpy", "torch") if name != "native" or is_present()
    ]
