"""What the compiler made of every CUDA kernel, without a GPU: `make cuda-report`.

Compiles kernels/cuda/*.cu, or reads a built library (--library), and shows, per kernel and
architecture: registers, spills, stack, shared memory, occupancy, and the instruction that it
computes with. Exit status 1: a kernel spills, has a stack that STACKS does not declare, or was not
seen to hold the matrix instruction of its mark, the end of its name or of its file's: _sm90 HGMMA,
_mma HMMA or another one of tensor cores; 2: nothing could be said.

Objects are kept in build/cuda_report/, by a hash of all that they depend on. 264 kernels
took 29 s from nothing, 1 s again (2 cores of an x86-64 server, CUDA 13.0, 2026-11-22).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cuda_compile
import cuda_library
import cuda_objects
from cuda_occupancy import occupancy

SOURCES = cuda_compile.ROOT / "kernels" / "cuda"
ARCHS = ("80", "90a")  # CMakeLists.txt, FASTCONV_CUDA_ARCHS
# Bytes of local memory per thread that a kernel is meant to have, by its name.
STACKS: dict[str, int] = {}
# Kernels of tensor cores whose names do not end in the mark _mma.
TENSOR_CORES = frozenset({"conv2d_pointwise_kernel"})


@dataclass(frozen=True)
class Kernel:
    """One instance for one architecture; bytes, but for registers and threads."""

    file: str
    name: str
    instance: str  # template arguments
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int
    dynamic_shared: int | None  # None: some; how much, the launch alone says
    threads: int | None  # of a block, from __launch_bounds__
    blocks: int | None  # on one multiprocessor
    occupancy: float | None  # where dynamic_shared is None: at most this
    limit: str | None  # of the occupancy
    instructions: dict[str, int] | None  # None: not disassembled

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0

    def is_marked(self, mark: str) -> bool:
        return bool(
            re.search(rf"_{mark}(_kernel)?$", self.name)
            or Path(self.file).stem.endswith(f"_{mark}")
        )

    @property
    def wanted(self) -> tuple[str, tuple[str, ...]] | None:
        """The mark, and the instructions of which the kernel must hold one; None without a mark."""
        if self.is_marked("sm90"):  # elsewhere its body is empty
            return ("_sm90", ("HGMMA",)) if self.arch.startswith("90") else None
        if self.is_marked("mma") or self.name in TENSOR_CORES:
            return "_mma", ("HMMA", *cuda_objects.MATRIX)
        return None

    @property
    def matrix(self) -> str:
        if self.instructions is None:
            return "needs cuobjdump"
        return cuda_objects.strongest(self.instructions)

    def fault(self) -> str | None:
        """What makes the report fail."""
        instance = f"<{self.instance}>" if self.instance else ""
        of = f"{self.name}{instance} for sm_{self.arch} ({self.file})"
        if self.spills:
            return f"{of}: spills {self.spill_stores} bytes, loads {self.spill_loads}"
        if self.stack > STACKS.get(self.name, 0):
            return f"{of}: {self.stack} bytes of stack, declared {STACKS.get(self.name, 0)}"
        if self.wanted is None:
            return None
        mark, (name, *others) = self.wanted
        if self.instructions is None:
            return f"{of}: marked {mark}, but {name} could not be looked for without cuobjdump"
        if not any(self.instructions.get(each) for each in (name, *others)):
            return f"{of}: marked {mark}, but holds no {name} (found: {self.matrix})"
        return None


def describe(
    file: str | None,
    arch: str,
    resources: dict[str, cuda_objects.Resources],
    entries: dict[str, cuda_objects.Entry],
    shared: dict[str, int],
    instructions: dict[str, dict[str, int]] | None,
) -> list[Kernel]:
    """The kernels of one file, or of a library, for one architecture, from what the tools wrote."""
    kernels = []
    for mangled, of in resources.items():
        entry = entries.get(mangled, cuda_objects.Entry(None, True))
        dynamic = shared.get(mangled) if entry.dynamic_shared else 0
        bytes_shared = of.static_shared + (dynamic or 0)
        fit = entry.threads and occupancy(arch, of.registers, bytes_shared, entry.threads)
        kernels.append(
            Kernel(
                file or cuda_objects.source_of(mangled) or "-",
                *cuda_objects.split_name(cuda_objects.demangle(mangled)),
                arch,
                of.registers,
                of.spill_stores,
                of.spill_loads,
                of.stack,
                of.static_shared,
                dynamic,
                entry.threads,
                fit.blocks if fit else None,
                fit.share if fit else None,
                fit.limit if fit else None,
                None if instructions is None else instructions.get(mangled, {}),
            )
        )
    return kernels


def span(values: Iterable[int]) -> str:
    kept = sorted(set(values))
    if not kept:
        return "-"
    return f"{kept[0]}" if len(kept) == 1 else f"{kept[0]}-{kept[-1]}"


COLUMNS: tuple[str, ...]
COLUMNS = ("kernel", "arch", "count", "registers", "spills", "stack", "shared", "dynamic")
COLUMNS += ("threads", "occupancy", "limit", "computes with")


def rows(kernels: list[Kernel]) -> list[tuple[str, ...]]:
    """One line per kernel and architecture: how many instances, and the worst of each."""
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in sorted(kernels, key=lambda of: (of.name, of.arch)):
        groups.setdefault((kernel.name, f"sm_{kernel.arch}"), []).append(kernel)
    found: list[tuple[str, ...]] = []
    for (name, arch), group in groups.items():
        known = [kernel for kernel in group if kernel.occupancy is not None]
        worst = min(known, key=lambda of: of.occupancy or 0.0, default=None)
        share, limit = "-", "-"
        if worst:
            share = f"{worst.occupancy:.0%}" + (" at most" if worst.dynamic_shared is None else "")
            limit = worst.limit or "-"
        dynamic = [kernel.dynamic_shared for kernel in group]
        matrix = Counter(kernel.matrix for kernel in group)
        used = (f"{of} x{count}" for of, count in matrix.most_common())
        found.append(
            (
                name.removesuffix("_kernel"),
                arch,
                str(len(group)),
                str(max(kernel.registers for kernel in group)),
                str(max(kernel.spill_stores + kernel.spill_loads for kernel in group)),
                str(max(kernel.stack for kernel in group)),
                str(max(kernel.static_shared for kernel in group)),
                "?" if None in dynamic else span(of for of in dynamic if of is not None),
                span(kernel.threads for kernel in group if kernel.threads),
                share,
                limit,
                "needs cuobjdump" if None in [of.instructions for of in group] else ", ".join(used),
            )
        )
    return found


def show(lines: list[tuple[str, ...]]) -> None:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(COLUMNS, *lines, strict=True)]
        for line in (COLUMNS, *lines):
            print("  ".join(map(str.ljust, line, widths)).rstrip())
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, column in enumerate(COLUMNS):
        number = 2 <= at <= 9
        table.add_column(column, justify="right" if number else "left", no_wrap=at != 11)
    for line in lines:
        spilled = COLUMNS.index("spills")
        table.add_row(*line, style="red" if line[spilled] != "0" else None)
    Console(width=None if sys.stdout.isatty() else 170).print(table)


def from_library(path: Path, cuobjdump: str) -> list[Kernel]:
    """The kernels of a built library. What a launch adds of shared memory is not known there."""
    usage, entries, instructions = cuda_library.read(cuobjdump, path)
    found: list[Kernel] = []
    for arch, resources in sorted(usage.items()):
        # No PTX is of sm_90a, and in all other images the kernels of its instructions are empty.
        told = {of: it for of, it in entries.items() if arch != "90a" or "_sm90" not in of}
        found += describe(None, arch, resources, told, {}, instructions.get(arch, {}))
    return found


def from_sources(
    sources: list[Path], archs: list[str], jobs: int, cuobjdump: str | None
) -> tuple[list[Kernel], list[str]]:
    """The kernels that nvcc makes, and its remarks."""
    compiler = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)

    def work(job: tuple[Path, str]) -> tuple[list[Kernel], list[str]]:
        source, arch = job
        folder = cuda_compile.compile_kernels(source, arch, compiler.stdout)
        log, ptx = ((folder / name).read_text() for name in ("ptxas.log", "kernels.ptx"))
        shared = json.loads((folder / "shared.json").read_text())
        instructions = cuda_compile.disassemble(folder, cuobjdump)
        resources, entries = cuda_objects.parse_ptxas(log), cuda_objects.parse_ptx(ptx)
        kernels = describe(source.name, arch, resources, entries, shared, instructions)
        return kernels, cuda_objects.parse_remarks(log)

    kernels: list[Kernel] = []
    remarks: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        for some, said in pool.map(work, [(of, arch) for of in sources for arch in archs]):
            kernels += some
            remarks += said
    return kernels, remarks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", help="names of sources; without any: all")
    parser.add_argument("--library", type=Path, help="a built library, instead of compiling")
    parser.add_argument("--arch", action="append", help=f"without any: {', '.join(ARCHS)}")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time; 2")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="every instance, machine-readable"
    )
    options = parser.parse_args(arguments)
    cuobjdump = cuda_compile.find_cuobjdump()
    tool = "cuobjdump" if options.library else "nvcc"
    if not (cuobjdump if options.library else shutil.which("nvcc")):
        print(f"cuda-report: expected {tool} on PATH, found none", file=sys.stderr)
        return 2
    sources = [SOURCES / Path(name).name for name in options.files]
    sources = sources or sorted(SOURCES.glob("*.cu"))
    remarks: list[str] = []
    try:
        if options.library:
            kernels = from_library(options.library, cuobjdump or "")
        else:
            archs = options.arch or list(ARCHS)
            kernels, remarks = from_sources(sources, archs, options.jobs, cuobjdump)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"cuda-report: {error}", file=sys.stderr)
        return 2
    faults = [fault for kernel in kernels if (fault := kernel.fault())]
    show(rows(kernels))
    for line in remarks:
        print(line)
    if cuobjdump is None:
        print(
            "Instructions: needs cuobjdump (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm;"
            " or set CUOBJDUMP to its path)"
        )
    if options.json:
        found = {"kernels": [asdict(kernel) for kernel in kernels], "faults": faults}
        options.json.write_text(json.dumps(found | {"remarks": remarks}, indent=1) + "\n")
    for fault in faults:
        print(f"FAULT  {fault}")
    print(f"{len(kernels)} kernels, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
