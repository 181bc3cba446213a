"""The kernels of a built library, read with cuobjdump: nothing is compiled.

    REG, STACK, SHARED      cuobjdump --dump-resource-usage
    launch bounds           the PTX in the library; without PTX they are unknown
    instructions            cuobjdump -sass (14 s for 264 kernels); kept by a hash

What is spilled shows as stack: a kernel without a stack spills nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import cuda_compile
import cuda_objects
from cuda_objects import Entry, Resources

Instructions = dict[str, dict[str, dict[str, int]]]  # by architecture and mangled name


def _environment(cuobjdump: str) -> dict[str, str]:
    """cuobjdump runs nvdisasm, which lies beside it."""
    path = f"{Path(cuobjdump).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path}


def dump(cuobjdump: str, what: str, path: Path) -> Iterable[str]:
    """The lines that cuobjdump prints; SASS alone is tens of megabytes."""
    command = [cuobjdump, what, str(path)]
    environment = _environment(cuobjdump)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        yield from process.stdout
        said = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"{path.name}: cuobjdump {what} failed\n{said}")


def disassemble(cuobjdump: str, path: Path) -> Instructions:
    """How many of each instruction of interest every kernel holds."""
    digest = hashlib.sha256(path.read_bytes() + Path(cuda_objects.__file__).read_bytes())
    kept = cuda_compile.CACHE / f"{path.stem}.{digest.hexdigest()[:16]}.json"
    if not kept.is_file():
        counts = cuda_objects.parse_sass_by_arch(dump(cuobjdump, "-sass", path))
        kept.parent.mkdir(parents=True, exist_ok=True)
        for old in kept.parent.glob(f"{path.stem}.{'[0-9a-f]' * 16}.json"):
            old.unlink(missing_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(counts))
        fresh.replace(kept)
    found: Instructions = json.loads(kept.read_text())
    return found


def read(
    cuobjdump: str, path: Path
) -> tuple[dict[str, dict[str, Resources]], dict[str, Entry], Instructions]:
    """(resources by architecture and mangled name, entries of the PTX, instructions)."""
    usage = cuda_objects.parse_usage(dump(cuobjdump, "--dump-resource-usage", path))
    entries = cuda_objects.parse_ptx("".join(dump(cuobjdump, "-ptx", path)))
    return usage, entries, disassemble(cuobjdump, path)
