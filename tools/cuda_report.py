"""What the compiler made of every CUDA kernel, without a GPU: `make cuda-report`.

Compiles kernels/cuda/*.cu and shows, per kernel and architecture: registers, spills, stack, shared
memory, occupancy, and the instruction that it computes with. Exit status 1: a kernel spills, or a
kernel marked _sm90 (by its name or its file's) was not seen to hold HGMMA; 2: nothing could be
said.

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
import cuda_objects
from cuda_occupancy import occupancy

SOURCES = cuda_compile.ROOT / "kernels" / "cuda"
ARCHS = ("80", "90a")  # CMakeLists.txt, FASTCONV_CUDA_ARCHS


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

    @property
    def wants_hgmma(self) -> bool:
        marked = re.search(r"_sm90(_kernel)?$", self.name) or Path(self.file).stem.endswith("_sm90")
        return bool(marked) and self.arch.startswith("90")

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
        if self.wants_hgmma and self.instructions is None:
            return f"{of}: marked _sm90, but HGMMA could not be looked for without cuobjdump"
        if self.wants_hgmma and self.matrix != "HGMMA":
            return f"{of}: marked _sm90, but holds no HGMMA (found: {self.matrix})"
        return None


def describe(
    file: str,
    arch: str,
    log: str,
    ptx: str,
    shared: dict[str, int],
    instructions: dict[str, dict[str, int]] | None,
) -> list[Kernel]:
    """The kernels of one file for one architecture, from what the tools wrote."""
    entries = cuda_objects.parse_ptx(ptx)
    kernels = []
    for mangled, of in cuda_objects.parse_ptxas(log).items():
        entry = entries[mangled]
        dynamic = shared.get(mangled) if entry.dynamic_shared else 0
        bytes_shared = of.static_shared + (dynamic or 0)
        fit = entry.threads and occupancy(arch, of.registers, bytes_shared, entry.threads)
        kernels.append(
            Kernel(
                file,
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", help="names of sources; without any: all")
    parser.add_argument("--arch", action="append", help=f"without any: {', '.join(ARCHS)}")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time; 2")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="every instance, machine-readable"
    )
    options = parser.parse_args(arguments)
    if shutil.which("nvcc") is None:
        print("cuda-report: expected nvcc on PATH, found none", file=sys.stderr)
        return 2
    sources = [SOURCES / Path(name).name for name in options.files]
    sources = sources or sorted(SOURCES.glob("*.cu"))
    compiler = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    cuobjdump = cuda_compile.find_cuobjdump()

    def work(job: tuple[Path, str]) -> tuple[list[Kernel], list[str]]:
        source, arch = job
        folder = cuda_compile.compile_kernels(source, arch, compiler.stdout)
        log, ptx = ((folder / name).read_text() for name in ("ptxas.log", "kernels.ptx"))
        shared = json.loads((folder / "shared.json").read_text())
        instructions = cuda_compile.disassemble(folder, cuobjdump)
        kernels = describe(source.name, arch, log, ptx, shared, instructions)
        return kernels, cuda_objects.parse_remarks(log)

    jobs = [(source, arch) for source in sources for arch in options.arch or ARCHS]
    kernels: list[Kernel] = []
    remarks: list[str] = []
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            for some, said in pool.map(work, jobs):
                kernels += some
                remarks += said
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"cuda-report: {error}", file=sys.stderr)
        return 2
    faults = [fault for kernel in kernels if (fault := kernel.fault())]
    show(rows(kernels))
    for line in remarks:
        print(line)
    if cuobjdump is None:
        print("Instructions: needs cuobjdump (in Triton's package; or set CUOBJDUMP to its path)")
    if options.json:
        found = {"kernels": [asdict(kernel) for kernel in kernels], "faults": faults}
        options.json.write_text(json.dumps(found | {"remarks": remarks}, indent=1) + "\n")
    for fault in faults:
        print(f"FAULT  {fault}")
    print(f"{len(kernels)} kernels, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
