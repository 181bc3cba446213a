"""Reads what nvcc, ptxas and cuobjdump write about kernels, and shortens their names."""

import ctypes
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# What a kernel computes with, the most capable first. UTC*: tensor cores of Blackwell.
MATRIX = ("UTCHMMA", "UTCIMMA", "UTCQMMA", "HGMMA", "QGMMA", "IGMMA", "BGMMA")
MATRIX += ("DMMA", "HMMA", "QMMA", "IMMA", "BMMA")
ARITHMETIC = (*MATRIX, "DFMA", "FFMA", "FFMA2", "HFMA2")


@dataclass
class Resources:
    """What ptxas says of one kernel; spills are those of the functions that it calls, too."""

    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    static_shared: int = 0


@dataclass(frozen=True)
class Entry:
    """What PTX says of one kernel."""

    threads: int | None  # of a block, from __launch_bounds__
    dynamic_shared: bool


def parse_ptxas(log: str) -> dict[str, Resources]:
    """Of each kernel, by mangled name, from the output of -Xptxas -v."""
    found: dict[str, Resources] = {}
    kernel = Resources()
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found.setdefault(match[1], Resources())
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            kernel.stack = max(kernel.stack, int(match[1]))
            kernel.spill_stores += int(match[2])
            kernel.spill_loads += int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel.static_shared = int(shared[1]) if shared else 0
    return found


def parse_remarks(log: str) -> list[str]:
    """Warnings, such as that wgmma instructions were serialized."""
    lines = (line.strip() for line in log.splitlines())
    return sorted({line for line in lines if re.search(r"warning|Performance Loss", line)})


def parse_ptx(ptx: str) -> dict[str, Entry]:
    """Of each kernel, by mangled name."""
    dynamic = re.findall(r"^\.extern \.shared .*?(\w+)\[\];", ptx, flags=re.MULTILINE)
    found: dict[str, Entry] = {}
    for text in re.split(r"^(?:\.visible |\.weak )?\.entry\s+", ptx, flags=re.MULTILINE)[1:]:
        head, _, body = re.split(r"^\.version ", text, flags=re.MULTILINE)[0].partition("{")
        name = re.split(r"\W", head, maxsplit=1)[0]
        bounds = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", head)
        threads = None
        if bounds:
            x, y, z = (int(extent or 1) for extent in bounds.groups())
            threads = x * y * z
        words = set(re.findall(r"[\w$]+", body))
        found[name] = Entry(threads, any(symbol in words for symbol in dynamic))
    return found


def parse_sizes(ptx: str, variable: str) -> list[int]:
    """The elements of an array of unsigned 64-bit integers, which PTX writes as bytes."""
    match = re.search(rf"\.b8 {variable}\[(\d+)\] = \{{(.*?)\}}", ptx)
    if match is None:
        raise RuntimeError(f"{variable}: expected an array of bytes in the PTX, found none")
    data = bytes(int(byte) for byte in match[2].split(",")).ljust(int(match[1]), b"\0")
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def parse_sass(sass: str) -> dict[str, dict[str, int]]:
    """Of each kernel, by mangled name: how many of each of ARITHMETIC its SASS holds."""
    return parse_sass_by_arch(sass.splitlines()).get("", {})


def parse_sass_by_arch(sass: Iterable[str]) -> dict[str, dict[str, dict[str, int]]]:
    """The same of a library, by architecture ("80", "90a"); "" where none is said."""
    found: dict[str, dict[str, Counter[str]]] = {}
    arch = ""
    counts: Counter[str] = Counter()
    instruction = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z]\w*)")
    for line in sass:
        if line.startswith("arch = sm_"):
            arch = line.strip().removeprefix("arch = sm_")
        elif match := re.match(r"\s*Function : (\S+)", line):
            counts = found.setdefault(arch, {}).setdefault(match[1], Counter())
        elif (match := instruction.match(line)) and match[1] in ARITHMETIC:
            counts[match[1]] += "-RZ, RZ," not in line  # 0 * 0 + constant is a move
    return {of: {name: dict(+n) for name, n in each.items()} for of, each in found.items()}


# What the system takes of every block's shared memory; from 9.0 on cuobjdump counts it in.
RESERVED_SHARED = 1024


def parse_usage(lines: Iterable[str]) -> dict[str, dict[str, Resources]]:
    """Of each kernel of a library, by architecture and mangled name, from the output of
    cuobjdump --dump-resource-usage: it knows the stack, not what of it is spilled."""
    found: dict[str, dict[str, Resources]] = {}
    arch, name = "", ""
    for line in lines:
        if line.startswith("arch = sm_"):
            arch = line.strip().removeprefix("arch = sm_")
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            if int(arch.rstrip("af")) >= 90:
                shared = max(shared - RESERVED_SHARED, 0)
            of = Resources(registers, stack + local, static_shared=shared)
            found.setdefault(arch, {})[name] = of
    return found


def source_of(mangled: str) -> str | None:
    """The file of a kernel in an unnamed namespace, whose name nvcc writes into the kernel's."""
    match = re.search(r"_GLOBAL__N__[0-9a-f]{8}_(\d+)_(\w+)", mangled)
    if match is None:
        return None
    stem = match[2][: int(match[1])]
    return stem.removesuffix("_cu") + ".cu" if stem.endswith("_cu") else None


def strongest(counts: dict[str, int]) -> str:
    """The most capable instruction among those counted."""
    return next((name for name in ARITHMETIC if counts.get(name)), "none")


def demangle(name: str) -> str:
    """As C++ writes it; as it is, where no C++ runtime is found."""
    for library in ("libstdc++.so.6", "libc++abi.so.1"):
        try:
            function = ctypes.CDLL(library).__cxa_demangle
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_void_p
        status = ctypes.c_int(-1)
        text = function(name.encode(), None, None, ctypes.byref(status))
        if text and status.value == 0:  # the runtime's malloc; a few kilobytes are left to the end
            return ctypes.cast(text, ctypes.c_char_p).value.decode()  # type: ignore[union-attr]
    return name


TYPES = {
    "__nv_bfloat16": "bfloat16",
    "__half": "float16",
    "float": "float32",
    "double": "float64",
    "unsigned char": "uint8",
    "signed char": "int8",
    "short": "int16",
    "int": "int32",
    "long": "int64",
}


def split_name(demangled: str) -> tuple[str, str]:
    """`void fastconv::cuda::f_kernel<__half, 2>(Of)` is ("f_kernel", "float16, 2")."""
    name = demangled.replace("(anonymous namespace)::", "").replace("fastconv::cuda::", "")
    depth, start, end = 0, len(name), len(name)
    for at, letter in enumerate(name):
        if letter == "<":
            start = at if depth == 0 and start == len(name) else start
            depth += 1
        elif letter == ">":
            depth -= 1
        elif letter == "(" and depth == 0:
            end = at
            break
    base = name[: min(start, end)].split()[-1].rpartition("::")[2]
    arguments = name[start:end].strip()[1:-1].strip()
    pattern = "|".join(rf"\b{of}\b" for of in TYPES)
    arguments = re.sub(pattern, lambda match: TYPES[match[0]], arguments)
    return base, arguments.replace(" >", ">")


def class_arguments(demangled: str) -> list[str]:
    """Template arguments of a kernel that are classes of fastconv, as C++ can read them."""
    text = demangled.replace("(anonymous namespace)::", "")
    _, _, text = text.partition("<")
    found, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        if depth == 0 and letter in ",>":
            found.append(text[start:at].strip())
            start = at + 1
        if letter == ">" and depth == 0:
            break
        depth += (letter in "<(") - (letter in ">)")
    return [argument for argument in found if argument.startswith("fastconv::")]
