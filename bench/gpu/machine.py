"""The device that is measured: what it is, what state it is in, and what it can do at all."""

from __future__ import annotations

import datetime
import re
import shutil
import statistics
import subprocess

import torch

import fastconv
from bench.gpu.timing import Timer, host_timer

QUERY = (
    "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,clocks.sm,clocks.mem,"
    "pstate,power.draw,power.limit,temperature.gpu,utilization.gpu"
)
PRODUCT_SIZE, COPY_BYTES = 8192, 2**32


def require_device() -> None:
    """Raise where fastconv would not run its own CUDA kernels: torch would serve, unnoticed."""
    core = fastconv._native.core
    if core is None:
        raise SystemExit("the compiled part of fastconv is missing: run the part `build` first")
    if not core.cuda_archs():
        raise SystemExit("fastconv was built without CUDA: run `build` where nvcc is on PATH")
    if not torch.cuda.is_available() or not core.cuda_device_count():
        raise SystemExit("no CUDA device can be used here")


def state() -> dict[str, str]:
    """Return what nvidia-smi says now: SKU, driver, clocks, power; read, never set."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": type(error).__name__}
    values = [value.strip() for value in answer.stdout.splitlines()[0].split(",")]
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"time": now, **dict(zip(QUERY.split(","), values, strict=False))}


def describe(device: str) -> dict[str, object]:
    """Return what a reader needs to know of the machine; never a host name or a serial number."""
    facts: dict[str, object] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "fastconv": fastconv.__version__,
        "fastconv_backend": fastconv.backend(),
    }
    if device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "cudnn": torch.backends.cudnn.version(),
            "fastconv_archs": fastconv._native.core.cuda_archs(),
        }
    return facts


def file_name(gpu: str) -> str:
    """Return a GPU's name as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


def set_tf32(allowed: bool) -> None:
    """Let torch round float32 operands to tf32, or not; products and convolutions alike."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def roof(device: str, timer: Timer) -> dict[str, float]:
    """Measure the ceilings: TFLOP/s of torch's matrix product by mode, TB/s of a copy."""
    rehearsal = timer is host_timer
    size, elements = (64, 1024) if rehearsal else (PRODUCT_SIZE, COPY_BYTES // 4)
    roofs = {}
    for mode, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
        ("float32", torch.float32, False),
        ("float32 tf32", torch.float32, True),
    ):
        set_tf32(tf32)
        # Random, not constant: on zeros the clocks stay higher.
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        times = [timer(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) for _ in range(9)]
        roofs[mode] = 2e-12 * size**3 / statistics.median(times[2:])
    set_tf32(False)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    times = [timer(lambda: target.copy_(source)) for _ in range(9)]
    return roofs | {"copy": 8e-12 * elements / statistics.median(times[2:])}
