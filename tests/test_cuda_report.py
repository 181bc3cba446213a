"""Law: make cuda-report reads what the CUDA tools write, and fails on what must not be built."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import native
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
objects = importlib.import_module("cuda_objects")
compiling = importlib.import_module("cuda_compile")
library = importlib.import_module("cuda_library")
report = importlib.import_module("cuda_report")
occupancy = importlib.import_module("cuda_occupancy").occupancy
sys.path.pop(0)

# Recorded from CUDA 13.0, cut short.
CLEAN = "_Z10probe_sm90Pfmm"
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : Compiling entry function 'spilling' for 'sm_90a'
ptxas info    : Function properties for spilling
    328 bytes stack frame, 416 bytes spill stores, 412 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4096 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 28.749 ms
ptxas info    : Compiling entry function '_Z10probe_sm90Pfmm' for 'sm_90a'
ptxas info    : Function properties for _Z10probe_sm90Pfmm
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
"""
PTX = """\
.target sm_90a
.extern .shared .align 16 .b8 _ZN8fastconv4cuda6memoryE[];
.visible .entry spilling(
\t.param .u64 spilling_param_0
)
.maxntid 1024, 1, 1
.minnctapersm 2
{
\tmov.u32 %r1, _ZN8fastconv4cuda6memoryE;
\t{
\tret;
\t}
}
.entry _Z10probe_sm90Pfmm(
\t.param .u64 _Z10probe_sm90Pfmm_param_0
)
.maxntid 64, 2
{
\tret;
}
"""
SASS = """\
\tcode for sm_90
\t\tFunction : spilling
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0310*/                   HFMA2.MMA R4, -RZ, RZ, 0, 0 ;           /* 0x00000000ff047435 */
                                                                           /* 0x000fe20000000800 */
        /*0320*/              @!P0 FFMA.FTZ R5, R6, R7, R5 ;               /* 0x00000a00ff017b82 */
        /*0330*/              @UP1 IMAD.MOV.U32 R3, RZ, RZ, RZ ;           /* 0x00000a00ff017b82 */
\t\tFunction : _Z10probe_sm90Pfmm
        /*0060*/                   HGMMA.64x8x16.F32 R24, gdesc[UR4], RZ, !UPT, gsb0 ;  /* 0x0 */
        /*0070*/                   FFMA R5, R6, R7, R5 ;                   /* 0x00000a00ff017b82 */
"""


def described(file="probe.cu", sass=SASS, arch="90a", shared=()):
    instructions = None if sass is None else objects.parse_sass(sass)
    resources, entries = objects.parse_ptxas(PTXAS), objects.parse_ptx(PTX)
    return report.describe(file, arch, resources, entries, dict(shared), instructions)


def test_resources_are_read():
    spilling, clean = described()
    assert (spilling.registers, spilling.stack, spilling.static_shared) == (32, 328, 4096)
    assert (spilling.threads, spilling.dynamic_shared) == (1024, None)
    assert (clean.registers, clean.static_shared) == (30, 0)
    assert (clean.threads, clean.dynamic_shared) == (128, 0)


def test_a_spill_is_a_fault():
    spilling, clean = described()
    assert "spills 416 bytes, loads 412" in spilling.fault()
    assert clean.fault() is None


def test_spills_of_called_functions_count():
    called = "\nptxas info    : Function properties for inner\n"
    called += "    8 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n"
    of = objects.parse_ptxas(PTXAS + called)[CLEAN]
    assert (of.spill_stores, of.spill_loads) == (4, 8)


def test_remarks_are_kept():
    assert ["serialized" in line for line in objects.parse_remarks(PTXAS)] == [True]


USAGE = """\
Fatbin elf code:
================
arch = sm_80
Resource usage:
 Common:
  GLOBAL:0
 Function spilling:
  REG:32 STACK:328 SHARED:4096 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a
 Function spilling:
  REG:32 STACK:0 SHARED:5120 LOCAL:8 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_resources_of_a_library_are_read():
    of = objects.parse_usage(USAGE.splitlines())
    assert (of["80"]["spilling"].stack, of["80"]["spilling"].static_shared) == (328, 4096)
    # From 9.0 on what the system reserves is counted in.
    assert (of["90a"]["spilling"].stack, of["90a"]["spilling"].static_shared) == (8, 4096)
    sass = f"arch = sm_80\n{SASS}arch = sm_90a\n{SASS}".splitlines()
    assert sorted(objects.parse_sass_by_arch(sass)) == ["80", "90a"]


def test_the_source_is_read_off_the_name_of_a_kernel():
    name = "_ZN8fastconv4cuda41_GLOBAL__N__0e45b7a2_9_conv2d_cu_ab7084e44convEv"
    assert objects.source_of(name) == "conv2d.cu"
    assert objects.source_of(CLEAN) is None


def test_the_strongest_instruction_is_named():
    assert [kernel.matrix for kernel in described()] == ["FFMA", "HGMMA"]
    assert objects.strongest({"FFMA": 9, "HMMA": 1}) == "HMMA"
    assert objects.strongest({}) == "none"


def test_a_constant_made_by_hfma2_is_no_arithmetic():
    assert objects.parse_sass(SASS)["spilling"] == {"FFMA": 1}


def test_kernels_marked_sm90_must_hold_hgmma():
    without = SASS.replace("HGMMA", "HMMA")
    assert described()[1].fault() is None
    assert "holds no HGMMA (found: HMMA)" in described(sass=without)[1].fault()
    assert described(sass=without, arch="80")[1].fault() is None  # its body is empty there
    assert "without cuobjdump" in described(sass=None)[1].fault()


def test_kernels_of_files_marked_sm90_must_hold_hgmma():
    kernel = described(file="conv2d_sm90.cu", sass=SASS.replace("HGMMA", "HMMA"))[1]
    assert kernel.fault() is not None
    assert described(file="conv2d_sm90_notes.cu")[0].wanted is None


def test_kernels_marked_mma_must_hold_an_instruction_of_tensor_cores():
    kernel = described(file="conv2d_mma.cu")[0]
    kernel = dataclasses.replace(kernel, spill_stores=0, spill_loads=0, stack=0)
    assert "marked _mma, but holds no HMMA (found: FFMA)" in kernel.fault()
    listed = dataclasses.replace(kernel, file="a.cu", name=next(iter(report.TENSOR_CORES)))
    assert "holds no HMMA" in listed.fault()
    for name in ("HMMA", "IMMA", "HGMMA"):
        assert dataclasses.replace(kernel, instructions={name: 1}).fault() is None
    assert "without cuobjdump" in dataclasses.replace(kernel, instructions=None).fault()


def test_a_stack_must_be_declared(monkeypatch):
    kernel = dataclasses.replace(described()[1], stack=16)
    assert "16 bytes of stack, declared 0" in kernel.fault()
    monkeypatch.setitem(report.STACKS, kernel.name, 16)
    assert kernel.fault() is None


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "blocks", "limit"),
    [  # computed by cuda_occupancy.h of CUDA 13.0
        ("80", 32, 0, 256, 8, "warps"),
        ("80", 33, 0, 256, 6, "registers"),
        ("80", 40, 0, 256, 6, "registers"),
        ("80", 48, 0, 256, 5, "registers"),
        ("80", 64, 0, 256, 4, "registers"),
        ("80", 128, 0, 128, 4, "registers"),
        ("80", 255, 0, 256, 1, "registers"),
        ("80", 255, 0, 1024, 0, "registers"),
        ("80", 16, 0, 32, 32, "blocks"),
        ("80", 32, 16384, 128, 9, "shared"),
        ("80", 32, 48 * 1024, 256, 3, "shared"),
        ("90a", 32, 48 * 1024, 256, 4, "shared"),
        ("90a", 168, 200000, 384, 1, "registers"),
        ("90a", 64, 0, 512, 2, "registers"),
    ],
)
def test_occupancy_is_that_of_the_toolkit(arch, registers, shared, threads, blocks, limit):
    fit = occupancy(arch, registers, shared, threads)
    assert (fit.blocks, fit.limit) == (blocks, limit)
    assert fit.share == blocks * (threads // 32) / 64


@pytest.mark.parametrize(
    ("demangled", "base", "arguments"),
    [
        ("info_image_kernel(Nothing)", "info_image_kernel", ""),
        (
            "void fastconv::cuda::(anonymous namespace)::tiled_kernel<fastconv::cuda::Tile<__half, "
            "4, 2, true> >(fastconv::cuda::(anonymous namespace)::Tiled<int>)",
            "tiled_kernel",
            "Tile<float16, 4, 2, true>",
        ),
        (
            "void pool_kernel<unsigned char, 16, long, __nv_bfloat16>(Pool<int>)",
            "pool_kernel",
            "uint8, 16, int64, bfloat16",
        ),
    ],
)
def test_names_are_short(demangled, base, arguments):
    assert objects.split_name(demangled) == (base, arguments)


def test_dynamic_shared_memory_limits_occupancy():
    unknown, known = (described(shared=of)[0] for of in ((), {"spilling": 200 * 1024}))
    assert (unknown.dynamic_shared, unknown.blocks) == (None, 2)
    assert (known.dynamic_shared, known.blocks, known.limit) == (200 * 1024, 1, "shared")
    lines = report.rows([unknown, known])
    assert lines[0][7] == "?"


def test_sizes_are_read_from_bytes():
    ptx = ".global .align 8 .b8 shared_sizes[24] = {0, 138, 0, 0, 0, 0, 0, 0, 1, 2};"
    assert objects.parse_sizes(ptx, "shared_sizes") == [138 * 256, 513, 0]


def test_classes_among_template_arguments_are_found():
    name = "void f<fastconv::cuda::(anonymous namespace)::Tile<fastconv::A<1>, 2>, int>(Tiled<int>)"
    assert objects.class_arguments(name) == ["fastconv::cuda::Tile<fastconv::A<1>, 2>"]
    assert objects.class_arguments("f(int)") == []
    assert objects.class_arguments("void f<float, (Kind)1>(int)") == []


def test_names_are_demangled():
    assert objects.demangle("_Z10probe_sm90Pfmm") in (
        "probe_sm90(float*, unsigned long, unsigned long)",
        "_Z10probe_sm90Pfmm",  # no C++ runtime here
    )


def test_the_table_shows_the_worst_of_each_group(capsys):
    kernels = described() + described()
    lines = report.rows(kernels)
    assert [line[:5] for line in lines] == [
        ("probe_sm90", "sm_90a", "2", "30", "0"),
        ("spilling", "sm_90a", "2", "32", "828"),
    ]
    assert lines[0][-1] == "HGMMA x2"
    report.show(lines)
    assert "probe_sm90" in capsys.readouterr().out


def test_without_cuobjdump_instructions_are_not_guessed():
    assert {line[-1] for line in report.rows(described(sass=None))} == {"needs cuobjdump"}


def test_the_cache_notices_a_changed_header(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "ROOT", tmp_path)
    source, header = tmp_path / "a.cu", tmp_path / "b.cuh"
    source.write_text('#include "b.cuh"\n')
    header.write_text("// one\n")
    key = compiling.cache_key(source, "80", "nvcc 13.0")
    assert key == compiling.cache_key(source, "80", "nvcc 13.0")
    assert key != compiling.cache_key(source, "90a", "nvcc 13.0")
    header.write_text("// two\n")
    assert key != compiling.cache_key(source, "80", "nvcc 13.0")


def built_library():
    """(the library, cuobjdump), or what is missing."""
    core = native.core()
    if not core.cuda_archs():
        return "fastconv was built without CUDA"
    cuobjdump = compiling.find_cuobjdump()
    if cuobjdump is None:
        return "needs cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    return Path(core.__file__).with_name("libfastconv_kernels.so"), cuobjdump


def test_the_kernels_of_the_build_are_clean():
    """Nothing is compiled for it: the library holds what is reported."""
    found = built_library()
    if isinstance(found, str):
        pytest.skip(found)
    kernels = report.from_library(*found)
    assert [fault for kernel in kernels if (fault := kernel.fault())] == []
    archs = {arch.removesuffix("-virtual") for arch in native.core().cuda_archs()}
    assert {kernel.arch for kernel in kernels} == archs
    assert all(kernel.registers > 0 and kernel.file.endswith(".cu") for kernel in kernels)
    assert any(kernel.matrix != "none" for kernel in kernels)


def test_the_table_of_a_library(capsys, monkeypatch):
    def dump(cuobjdump, what, path):
        text = {"-ptx": PTX, "--dump-resource-usage": USAGE, "-sass": f"arch = sm_90a\n{SASS}"}
        return text[what].splitlines(keepends=True)

    monkeypatch.setattr(library, "dump", dump)
    monkeypatch.setattr(compiling, "find_cuobjdump", lambda: "cuobjdump")
    assert report.main(["--library", __file__]) == 1
    said = capsys.readouterr().out
    assert "328 bytes of stack, declared 0" in said
    assert "2 kernels, 2 faults" in said


def test_the_ptx_of_a_library_does_not_describe_the_kernels_of_sm_90a(monkeypatch):
    usage = {arch: objects.parse_ptxas(PTXAS) for arch in ("80", "90a")}
    monkeypatch.setattr(library, "read", lambda *_: (usage, objects.parse_ptx(PTX), {}))
    found = {(of.name, of.arch): of.threads for of in report.from_library(Path("a.so"), "")}
    assert (found["probe_sm90", "80"], found["probe_sm90", "90a"]) == (128, None)
    assert found["spilling", "90a"] == 1024


def test_a_library_cannot_be_read_without_cuobjdump(capsys, monkeypatch):
    monkeypatch.setattr(compiling, "find_cuobjdump", lambda: None)
    assert report.main(["--library", __file__]) == 2
    assert "expected cuobjdump" in capsys.readouterr().err


def test_what_is_no_library_is_said(tmp_path, capsys):
    if compiling.find_cuobjdump() is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    (tmp_path / "empty.so").write_text("no library")
    assert report.main(["--library", str(tmp_path / "empty.so")]) == 2
    assert "cuobjdump --dump-resource-usage failed" in capsys.readouterr().err


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="this machine has no nvcc")
SPILLING = """
__global__ void __launch_bounds__(1024, 2) spilling_kernel(float* p) {
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 64; ++i) p[i * 1024 + threadIdx.x] = v[63 - i] * v[i * 7 % 64];
}
"""
SIZED = """
namespace fastconv {
struct Block { struct Shared { float of[300]; }; };
template <class Of>
__global__ void __launch_bounds__(64) sized_sm90_kernel(float* p) {
  extern __shared__ float memory[];
  p[0] = memory[threadIdx.x];
}
template __global__ void sized_sm90_kernel<Block>(float*);
}
"""


@needs_nvcc
@pytest.mark.parametrize(
    ("code", "fault"),
    [(SPILLING, "spills"), (SIZED, "marked _sm90"), ("__global__ void calm_kernel() {}", None)],
)
def test_faults_decide_the_exit_status(code, fault, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "SOURCES", tmp_path)
    monkeypatch.setattr(compiling, "CACHE", tmp_path / "cache")
    (tmp_path / "probe.cu").write_text(code)
    assert report.main(["--arch", "90a"]) == (1 if fault else 0)
    said = capsys.readouterr().out
    assert fault is None or fault in said
    assert report.main(["--arch", "90a"]) == (1 if fault else 0)  # from the cache
    assert len(list((tmp_path / "cache").iterdir())) == 1
    if code is SIZED:
        assert "1200" in said


@needs_nvcc
def test_a_source_that_does_not_compile_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "SOURCES", tmp_path)
    monkeypatch.setattr(compiling, "CACHE", tmp_path / "cache")
    (tmp_path / "broken.cu").write_text("no C++")
    assert report.main(["--arch", "80"]) == 2
    assert "broken.cu for sm_80: nvcc failed" in capsys.readouterr().err


@needs_nvcc
def test_the_smallest_source_is_reported(tmp_path):
    sources = (ROOT / "kernels/cuda").glob("*.cu")
    with_kernels = (path for path in sources if "__global__" in path.read_text())
    smallest = min(with_kernels, key=lambda path: path.stat().st_size)
    kept = tmp_path / "report.json"
    command = [sys.executable, ROOT / "tools/cuda_report.py", smallest.name, "--json", kept]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    kernels = json.loads(kept.read_text())["kernels"]
    assert {kernel["arch"] for kernel in kernels} == {"80", "90a"}
    assert all(kernel["registers"] > 0 for kernel in kernels)
