"""Runs Python in a process of its own, for what must be set before fastconv is imported."""

import os
import subprocess
import sys
import textwrap


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the code; the result has `returncode`, `stdout` and `stderr` as text."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def check_python(code: str, *arguments: str, **environment: str) -> str:
    """Runs the code, which must succeed, and returns what it printed."""
    result = run_python(code, *arguments, **environment)
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout
