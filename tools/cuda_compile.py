"""Compiles and disassembles CUDA sources; keeps objects by a hash of all they depend on."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import cuda_objects

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "cuda_report"
KEPT = ("kernels.cubin", "kernels.ptx", "ptxas.log", "shared.json")
# As CMakeLists.txt compiles.
OPTIONS = ("-std=c++17", "-O3", "-DNDEBUG", "-DFASTCONV_HAS_CUDA", "--expt-relaxed-constexpr")
OPTIONS += ('-DFASTCONV_CUDA_ARCHS="80,90a"',)
OPTIONS += ("-Xcompiler=-fvisibility=hidden", "-Xptxas=-v")


# Within a package: of nvidia-cuda-cuobjdump (PyPI, with nvidia-cuda-nvdisasm 5 MB) and of Triton.
PACKAGED = (("nvidia", "cu*/bin/cuobjdump"), ("triton", "backends/nvidia/bin/cuobjdump"))


def find_cuobjdump() -> str | None:
    """$CUOBJDUMP, of a Python package, on PATH, or of the CUDA toolkit; nvdisasm must be beside it
    or on PATH."""
    if given := os.environ.get("CUOBJDUMP"):
        return given
    places: list[Path] = []
    for package, pattern in PACKAGED:
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        places += (path for folder in folders or () for path in sorted(Path(folder).glob(pattern)))
    on_path = shutil.which("cuobjdump")
    places += [Path(on_path)] if on_path else []
    for nvcc in filter(None, (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc")):
        places.append(Path(nvcc).resolve().parent / "cuobjdump")
    for place in places:
        disassembler = shutil.which("nvdisasm", path=f"{place.parent}{os.pathsep}{os.defpath}")
        if os.access(place, os.X_OK) and (disassembler or shutil.which("nvdisasm")):
            return str(place)
    return None


def dependencies(source: Path) -> list[Path]:
    """The file and every file of the project that it includes."""
    found = [source]
    for path in found:
        for name in re.findall(r'^\s*#\s*include\s+"(.+?)"', path.read_text(), re.MULTILINE):
            for candidate in (ROOT / name, path.parent / name):
                if candidate.is_file() and candidate.resolve() not in found:
                    found.append(candidate.resolve())
    return found


def cache_key(source: Path, arch: str, compiler: str) -> str:
    digest = hashlib.sha256("\0".join((compiler, arch, PROBE, *OPTIONS)).encode())
    for path in sorted(dependencies(source.resolve())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


# A kernel that is a template over a class with a member `Shared` (conv2d_tile.cuh) is launched with
# sizeof(Shared) bytes of dynamic shared memory. The compiler is asked for the size.
PROBE = """
#include "{source}"
#include <type_traits>
template <class T, class = void>
struct SharedOf {{ static constexpr unsigned long long value = 0; }};
template <class T>
struct SharedOf<T, std::void_t<typename T::Shared>> {{
  static constexpr unsigned long long value = sizeof(typename T::Shared);
}};
extern "C" __device__ unsigned long long shared_sizes[] = {{{sizes}, 1}};
"""


def measure_shared(folder: Path, source: Path, options: list[str]) -> dict[str, int]:
    """The bytes of dynamic shared memory of the kernels of which the type tells it."""
    entries = cuda_objects.parse_ptx((folder / "kernels.ptx").read_text())
    types = {}
    for name, entry in entries.items():
        arguments = cuda_objects.class_arguments(cuda_objects.demangle(name))
        if entry.dynamic_shared and arguments:
            types[name] = arguments[0]
    if not types:
        return {}
    sizes = ", ".join(f"SharedOf<{of}>::value" for of in types.values())
    (folder / "probe.cu").write_text(PROBE.format(source=source, sizes=sizes))
    command = ["nvcc", *options, "-ptx", "-o", str(folder / "probe.ptx"), str(folder / "probe.cu")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{source.name}: size of shared memory: nvcc failed\n{ran.stderr}")
    measured = cuda_objects.parse_sizes((folder / "probe.ptx").read_text(), "shared_sizes")
    return {name: size for name, size in zip(types, measured, strict=False) if size}


def compile_kernels(source: Path, arch: str, compiler: str) -> Path:
    """The folder with the cubin, the PTX, the log of ptxas and shared.json."""
    stem = f"{source.stem}.sm_{arch}"
    folder = CACHE / f"{stem}.{cache_key(source, arch, compiler)}"
    if folder.is_dir():
        return folder
    unfinished = CACHE / f"{stem}.unfinished.{os.getpid()}"
    unfinished.mkdir(parents=True)
    try:
        options = [*OPTIONS, f"-I{ROOT}", f"-arch=sm_{arch}"]
        command = ["nvcc", *options, "-cubin"]
        command += ["-keep", f"-keep-dir={unfinished}", "-o", str(unfinished / "kernels.cubin")]
        ran = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"{source.name} for sm_{arch}: nvcc failed\n{ran.stderr}")
        next(unfinished.glob("*.ptx")).rename(unfinished / "kernels.ptx")
        (unfinished / "ptxas.log").write_text(ran.stderr)
        shared = measure_shared(unfinished, source.resolve(), options)
        (unfinished / "shared.json").write_text(json.dumps(shared))
        for path in unfinished.iterdir():
            if path.name not in KEPT:
                path.unlink()
        for old in CACHE.glob(f"{stem}.{'[0-9a-f]' * 16}"):
            shutil.rmtree(old, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def disassemble(folder: Path, cuobjdump: str | None) -> dict[str, dict[str, int]] | None:
    parser = hashlib.sha256(Path(cuda_objects.__file__).read_bytes()).hexdigest()[:16]
    kept = folder / f"instructions.{parser}.json"
    if not kept.is_file():
        if cuobjdump is None:
            return None
        # cuobjdump runs nvdisasm, which lies beside it.
        path = f"{Path(cuobjdump).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        command = [cuobjdump, "-sass", str(folder / "kernels.cubin")]
        environment = {**os.environ, "PATH": path}
        ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        kept.write_text(json.dumps(cuda_objects.parse_sass(ran.stdout)))
    found: dict[str, dict[str, int]] = json.loads(kept.read_text())
    return found
