"""Law: every layer knows only what the table in CONTRIBUTING.md lets it know."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import native
import pytest
from subprocesses import check_python

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
INTRINSIC = re.compile(
    r"\b_mm\d*_\w+|\bimmintrin\b|\barm_neon\b|\bv(?:ld1|st1|add|mul|fma)q?_[fsu]\d+\b"
)

# Headers that hold nothing but declarations, constants and C functions: safe to include where each
# instruction set has its
# own copy, for they leave no weak symbol whose AVX-512 copy the linker could keep for everyone.
HARMLESS = {
    "cfloat",
    "climits",
    "cmath",
    "cstddef",
    "cstdint",
    "cstdlib",
    "cstring",
    "type_traits",
    "utility",
    "immintrin.h",
    "arm_neon.h",
}

# Names of std that are types, constants or C functions.
TYPE_OR_C = re.compile(
    r"\w+_[tv]|(make_)?(index|integer)_sequence|(integral|bool)_constant|true_type|false_type"
    r"|mem(cpy|set|move)|(f?abs|sqrt|exp|log|tanh|fma|f?min|f?max|is(nan|inf))f?"
)


# What kernels/cuda/ may ask of CUDA: nothing of it waits for the device, allocates on it, or is
# refused while a stream is captured.
CAPTURABLE = {
    *("cudaDeviceGetAttribute", "cudaDriverGetVersion", "cudaRuntimeGetVersion"),
    *("cudaFuncGetAttributes", "cudaFuncSetAttribute", "cudaThreadExchangeStreamCaptureMode"),
    *("cudaGetDevice", "cudaGetDeviceCount", "cudaSetDevice"),
    *("cudaGetDriverEntryPoint", "cudaGetDriverEntryPointByVersion"),
    *("cudaGetErrorString", "cudaGetLastError", "cudaMemsetAsync"),
}


def sources(folder: str, *patterns: str, recursive: bool = True) -> list[Path]:
    base = ROOT / folder
    find = base.rglob if recursive else base.glob
    found = [
        path for pattern in patterns for path in find(pattern) if "__pycache__" not in path.parts
    ]
    return sorted(found)


def code_of(path: Path) -> str:
    """C++ without its comments."""
    text = path.read_text()
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def includes(path: Path) -> list[tuple[bool, str]]:
    """(is a system header, name)."""
    return [(mark == "<", name) for mark, name in INCLUDE.findall(code_of(path))]


def imports(path: Path) -> set[str]:
    """The full names of the modules that a Python file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_levels(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def each(paths: list[Path]):
    assert paths, "the layer has no files: this law looks in the wrong place"
    return pytest.mark.parametrize("path", paths, ids=relative)


@each(sources("kernels", "*.h", recursive=False))
def test_contracts_include_nothing_but_each_other(path):
    for system, name in includes(path):
        if system:
            assert name in ("cstdint",), f"<{name}>"
        else:
            assert (path.parent / name).is_file(), f'"{name}" is not a contract'


@pytest.mark.parametrize("path", sources("kernels", "*.h", "*.cpp", "*.cu", "*.cuh"), ids=relative)
def test_kernels_never_heard_of_python_or_torch(path):
    for _, name in includes(path):
        assert not re.match(r"(torch|ATen|c10|pybind11|Python\.h|csrc)", name), name


@pytest.mark.parametrize("path", sources("kernels/cpu", "*.h", "*.cpp"), ids=relative)
def test_per_isa_files_leave_no_weak_symbols(path):
    if path.stem in ("isa", "parallel"):
        pytest.skip("compiled once, for every machine")
    for system, name in includes(path):
        assert not system or name in HARMLESS, (
            f"<{name}> may leave inline templates in a per-ISA object"
        )
    assert {
        name for name in re.findall(r"\bstd::(\w+)", code_of(path)) if not TYPE_OR_C.fullmatch(name)
    } == set()


@pytest.mark.parametrize("path", sources("kernels/cpu", "*.h", "*.cpp"), ids=relative)
def test_only_simd_knows_intrinsics(path):
    if path.name != "isa.cpp" and not re.fullmatch(r"simd(_\w+)?\.h", path.name):
        assert not INTRINSIC.search(code_of(path)), INTRINSIC.search(code_of(path)).group()


@pytest.mark.parametrize("path", sources("kernels/cuda", "*.cu", "*.cuh", "*.h"), ids=relative)
def test_launches_name_the_callers_stream(path):
    code = code_of(path)
    assert "<<<" not in code, "launch.h starts kernels, and looks at what became of it"
    called = set(re.findall(r"\b(cu(?:da)?[A-Z]\w*)\(", code))
    if path.name == "launch.h":
        starts = re.findall(r"cudaLaunch\w+\((.*?)\);", code, flags=re.DOTALL)
        assert starts
        assert all(re.search(r"static_cast<cudaStream_t>\(stream\)$", of) for of in starts)
        called = {name for name in called if not name.startswith("cudaLaunch")}
    assert called <= CAPTURABLE, "may wait, allocate, or fail while a graph is captured"


@pytest.mark.parametrize("path", sources("kernels", "*.cu", "*.cuh"), ids=relative)
def test_ptx_lives_in_the_device_headers(path):
    if not re.fullmatch(r"device(_\w+)?\.cuh", path.name):
        assert not re.search(r"\basm\b", code_of(path)), (
            "every PTX instruction has its wrapper in device*.cuh"
        )
        return
    double = ROOT / "tests/cuda_emulator/include/kernels/cuda" / path.name
    assert double.is_file(), "the emulator has the same functions"


@each(sources("csrc", "*.h", "*.cpp"))
def test_csrc_neither_computes_nor_borrows_headers(path):
    code = code_of(path)
    assert "__global__" not in code
    assert "<<<" not in code
    assert not INTRINSIC.search(code)
    for _, name in includes(path):
        assert not re.match(r"(torch|ATen|c10)/", name), (
            f"{name}: the shim is declared by ourselves"
        )
        if name.startswith("pybind11"):
            assert path.stem in ("python_module", "array_door"), (
                "the other door and the operations know no Python"
            )


@each(sources("fastconv/reference", "*.py"))
def test_truth_stays_independent(path):
    allowed = {"numpy", "numba", "fastconv", "ml_dtypes"} | set(sys.stdlib_module_names)
    assert top_levels(path) <= allowed
    within = {name for name in imports(path) if name.startswith("fastconv.")}
    assert all(name.startswith("fastconv.reference") for name in within), within


def test_truth_runs_without_torch():
    code = """
        import sys
        sys.modules["torch"] = None
        import fastconv.reference
        assert sys.modules["torch"] is None
        print("done")
    """
    assert check_python(code).strip() == "done"


@each(sources("tests", "*.py"))
def test_tests_do_not_import_benches(path):
    assert "bench" not in top_levels(path)


@pytest.mark.parametrize("path", sources("bench", "*.py"), ids=relative)
def test_benches_do_not_import_tests(path):
    assert not top_levels(path) & {"tests", "operations", "conftest_tests"}


@pytest.mark.parametrize("path", sources("fastconv", "*.py"), ids=relative)
def test_package_imports_neither_tests_nor_benches(path):
    assert not top_levels(path) & {"tests", "bench", "pytest", "hypothesis"}


def private_torch_names(path: Path) -> set[str]:
    """`torch._something`, whether written as an attribute or imported."""
    found = {n for n in imports(path) if n.startswith("torch.") and "._" in n}
    for node in ast.walk(ast.parse(path.read_text())):
        of_torch = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch"
        if of_torch and node.attr.startswith("_") and not node.attr.startswith("__"):
            found.add(f"torch.{node.attr}")
    return found


def test_private_names_of_torch_live_in_one_module():
    users = {relative(path): private_torch_names(path) for path in sources("fastconv", "*.py")}
    users = {path: names for path, names in users.items() if names}
    assert len(users) == 1, users


def test_import_does_not_drag_in_heavy_modules():
    code = """
        import sys, torch
        before = set(sys.modules)
        import fastconv
        heavy = {"numba", "matplotlib", "sklearn", "pytest", "cupy", "torch._inductor"}
        print(sorted(heavy & (set(sys.modules) - before)))
    """
    assert check_python(code).strip() == "[]"


def torch_library() -> Path:
    core = native.core()
    path = Path(core.__file__).with_name("_torch.so")
    assert path.is_file(), f"{path} is missing though the compiled part is there"
    return path


def dynamic_symbols(path: Path) -> list[list[str]]:
    return [
        line.split() for line in subprocess.check_output(["nm", "-D", path], text=True).splitlines()
    ]


def test_torch_library_needs_only_what_torch_2_10_exports():
    """One library for every torch: a later name would keep it from loading on 2.10. Weak names may
    be missing.
    """
    exported = set((Path(__file__).parent / "data" / "torch_2_10_shim.txt").read_text().split())
    needed = {
        fields[-1].partition("@")[0]
        for fields in dynamic_symbols(torch_library())
        if fields[-2] == "U"
    }
    shim = {name for name in needed if re.match(r"(aoti_torch_|torch_)", name)}
    assert shim, "the door to torch calls nothing of torch"
    assert shim <= exported, sorted(shim - exported)
    assert not [name for name in needed if re.search(r"_ZN\w*(at|c10|torch)\d", name)], (
        "C++ of torch is no ABI"
    )


def test_torch_library_is_bound_to_libtorch_alone():
    """DT_NEEDED libtorch.so, and no OpenMP runtime is added to the process."""
    dynamic = subprocess.check_output(["readelf", "-d", torch_library()], text=True)
    needed = re.findall(r"NEEDED.*\[(.+)\]", dynamic)
    assert "libtorch.so" in needed
    assert not [
        name for name in needed if re.match(r"lib(torch_|c10|gomp|omp|iomp|cudart|python)", name)
    ], needed


def test_compiled_part_exports_no_kernels():
    """Two copies of a symbol in one process would be an accident waiting: what is not a door is
    hidden.
    """
    for fields in dynamic_symbols(torch_library()):
        assert fields[-2] not in "TD" or not re.search("fastconv.*cpu", fields[-1]), fields


def isa_objects() -> list[tuple[str, Path]]:
    """(instruction set, object file) of what the last build compiled once per instruction set."""
    objects = ROOT.glob("build/*/CMakeFiles/fastconv_cpu_*.dir/**/*.o")
    return [
        (part.removeprefix("fastconv_cpu_").removesuffix(".dir"), path)
        for path in sorted(objects)
        for part in path.parts
        if part.startswith("fastconv_cpu_")
    ]


def test_instruction_sets_share_no_function():
    """The linker keeps one copy of a weak symbol: an AVX-512 one would crash older machines."""
    objects = isa_objects()
    if not objects:
        pytest.skip("no build folder here: this is an installed package")
    for isa, path in objects:
        listing = subprocess.run(
            ["nm", "--demangle", str(path)], capture_output=True, text=True, check=True
        ).stdout
        weak = re.findall(r"^[0-9a-f]+ [VWu] (.*)$", listing, re.MULTILINE)
        shared = [
            name
            for name in weak
            if f"cpu::{isa}::" not in name and not name.startswith("DW.ref.__gxx_personality")
        ]
        assert not shared, f"{path.name} for {isa}: {shared}"
