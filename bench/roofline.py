"""The roofs of this machine: how many multiply-adds and bytes per second its cores can do at all.

Every time in a report stands next to a percentage of these. They are measured, not looked up:
float32 by a loop of independent fused multiply-adds in registers, compiled here by llvmlite at the
machine's widest vectors (a matrix product of torch's where llvmlite is missing or the product is
faster); bfloat16 by torch's matrix product, a roof that others have reached; memory by a copy far
larger than the caches, read and written bytes counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch

_ACCUMULATORS = 12  # covers 2 ports x 4..5 cycles, fits AVX2's 16 registers
_COPY_BYTES = 512 * 2**20
_REPEATS = 7


@dataclass(frozen=True)
class Roof:
    """Measured ceilings with all threads; the sources say who measured."""

    threads: int
    float32_gflops: float
    float32_source: str
    bfloat16_gflops: float
    bfloat16_source: str
    copy_gb_s: float
    copy_source: str

    def peak(self, dtype: torch.dtype) -> float:
        """Return the floating-point roof for a dtype, in operations per second."""
        return 1e9 * (self.bfloat16_gflops if dtype == torch.bfloat16 else self.float32_gflops)

    def seconds(self, flops: float, moved_bytes: float, dtype: torch.dtype) -> tuple[float, str]:
        """Return the least time that work can take and which roof sets it."""
        compute, memory = flops / self.peak(dtype), moved_bytes / (1e9 * self.copy_gb_s)
        return (compute, "compute") if compute > memory else (memory, "memory")

    def as_dict(self) -> dict[str, object]:
        """Return the figures for a report."""
        return asdict(self)


def _best_seconds(run: Callable[[], object]) -> float:
    """Return the fastest of several runs: a ceiling is what can be done when nobody disturbs."""
    run()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _fma_ir(lanes: int) -> str:
    """Return LLVM code of fma(n, xy): n FMAs on each of 12 vectors, x and y from memory."""
    vector, chains = f"<{lanes} x float>", range(_ACCUMULATORS)
    phis = "\n".join(f"  %a{i} = phi {vector} [ %x, %entry ], [ %b{i}, %loop ]" for i in chains)
    fma = f"call {vector} @llvm.fma.v{lanes}f32({vector} %x, {vector} %y, {vector}"
    steps = "\n".join(f"  %b{i} = {fma} %a{i})" for i in chains)
    sums = "\n".join(
        f"  %s{i} = fadd {vector} %b{i}, {'%b0' if i == 1 else f'%s{i - 1}'}" for i in chains[1:]
    )
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define void @fma(i64 %n, ptr %xy) "min-legal-vector-width"="512" "prefer-vector-width"="512" {{
entry:
  %x = load {vector}, ptr %xy, align 4
  %py = getelementptr {vector}, ptr %xy, i64 1
  %y = load {vector}, ptr %py, align 4
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{phis}
{steps}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
{sums}
  store {vector} %s{_ACCUMULATORS - 1}, ptr %xy, align 4
  ret void
}}
"""


def _fma_gflops(threads: int) -> tuple[float, str]:
    """Measure float32 FMA with code of our own; raises ImportError without llvmlite."""
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    lanes = 16 if features.get("avx512f") else 8 if features.get("fma") else 4
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3
    )
    with llvm.create_mcjit_compiler(llvm.parse_assembly(_fma_ir(lanes)), target) as engine:
        engine.finalize_object()
        function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(
            engine.get_function_address("fma")
        )
        buffers = [(ctypes.c_float * (2 * lanes))(*[0.5] * (2 * lanes)) for _ in range(threads)]
        count = 5_000_000
        with ThreadPoolExecutor(threads) as pool:
            seconds = _best_seconds(
                lambda: list(pool.map(functools.partial(function, count), buffers))
            )
    return (
        2e-9 * threads * count * _ACCUMULATORS * lanes / seconds,
        f"FMA loop, {lanes} lanes, llvmlite",
    )


def _matmul_gflops(dtype: torch.dtype) -> tuple[float, str]:
    """Measure torch's matrix product at a few sizes; returns the best and what it was.

    Without instructions for bfloat16, torch's product takes minutes at the larger sizes: they are
    tried only where they take less than a second.
    """
    best, source = 0.0, ""
    for size in (256, 1024, 2048):
        if best and 2e-9 * size**3 / best > 1.0:
            break
        a = torch.ones(size, size, dtype=dtype)
        b, out = torch.ones_like(a), torch.empty_like(a)
        rate = 2e-9 * size**3 / _best_seconds(functools.partial(torch.mm, a, b, out=out))
        if rate > best:
            best, source = rate, f"torch matmul {size}x{size}"
    return best, source


def _copy_gb_s() -> float:
    """Measure a copy with all threads; read and written bytes count."""
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2e-9 * _COPY_BYTES / _best_seconds(functools.partial(target.copy_, source))


def measure() -> Roof:
    """Measure all roofs with torch's current number of threads; takes a few seconds."""
    threads = torch.get_num_threads()
    with torch.inference_mode():
        float32 = [_matmul_gflops(torch.float32)]
        with contextlib.suppress(ImportError):
            float32.append(_fma_gflops(threads))
        bfloat16 = max(_matmul_gflops(torch.bfloat16), max(float32))
        copy = _copy_gb_s()
    mebibytes = _COPY_BYTES // 2**20
    return Roof(
        threads, *max(float32), *bfloat16, copy, f"torch copy_ of {mebibytes} MiB, read + write"
    )


if __name__ == "__main__":
    for name, value in measure().as_dict().items():
        print(f"{name}: {value}")
