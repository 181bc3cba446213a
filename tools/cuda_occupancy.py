"""How many blocks of a kernel fit on one multiprocessor.

Limits: CUDA C++ programming guide, "Technical Specifications per Compute Capability",
https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications
Granularities and the formula: cuda_occupancy.h of the CUDA toolkit.
"""

from dataclasses import dataclass

WARP = 32
SUB_PARTITIONS = 4  # of a multiprocessor; each has its quarter of the registers
REGISTERS_PER_SM = 64 * 1024
REGISTER_UNIT = 256  # registers are given to a warp in multiples of this
SHARED_UNIT = 128  # bytes
SHARED_RESERVED = 1024  # bytes that the system takes for every block, since 8.0
THREADS_PER_BLOCK = 1024


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor."""

    warps: int
    blocks: int
    shared: int  # bytes


LIMITS = {
    "80": Limits(warps=64, blocks=32, shared=164 * 1024),
    "86": Limits(warps=48, blocks=16, shared=100 * 1024),
    "89": Limits(warps=48, blocks=24, shared=100 * 1024),
    "90": Limits(warps=64, blocks=32, shared=228 * 1024),
    "100": Limits(warps=64, blocks=32, shared=228 * 1024),
    "120": Limits(warps=48, blocks=24, shared=100 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # on one multiprocessor
    share: float  # warps on the multiprocessor / warps that it can hold
    limit: str  # what allows no more: registers, shared, warps or blocks


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def occupancy(arch: str, registers: int, shared: int, threads: int) -> Occupancy:
    """Of a kernel with `registers` per thread, `shared` bytes (static and dynamic) and `threads`
    per block, on architecture `arch` ("80", "90a")."""
    limits = LIMITS[arch.rstrip("af")]
    if not 0 < threads <= THREADS_PER_BLOCK:
        raise ValueError(f"threads: expected 1 to {THREADS_PER_BLOCK}, got {threads}")
    warps = -(-threads // WARP)
    registers_per_warp = round_up(max(registers, 1) * WARP, REGISTER_UNIT)
    warps_by_registers = (REGISTERS_PER_SM // SUB_PARTITIONS // registers_per_warp) * SUB_PARTITIONS
    fits = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": warps_by_registers // warps,
        "shared": limits.shared // round_up(shared + SHARED_RESERVED, SHARED_UNIT),
    }
    limit = min(fits, key=lambda name: fits[name])
    return Occupancy(fits[limit], fits[limit] * warps / limits.warps, limit)
