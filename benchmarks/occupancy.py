"""Computes the number of blocks of a kernel that fit on a multiprocessor.

Source: CUDA C++ programming guide, technical specifications per compute capability; the granularity
of allocation is that of NVIDIA's occupancy calculator.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP_SIZE = 32
_SUBPARTITIONS = 4  # of a multiprocessor; each has its own registers
_REGISTERS = 65536 // _SUBPARTITIONS  # of one of them
_REGISTER_UNIT = 256  # allocated per warp
_SHARED_UNIT = 128  # bytes
_RESERVED_SHARED = 1024  # bytes of every block that the driver reserves


@dataclass(frozen=True)
class Multiprocessor:
    """The limits of one multiprocessor of an architecture."""

    warps: int
    blocks: int
    shared_bytes: int


MULTIPROCESSORS = {
    "80": Multiprocessor(warps=64, blocks=32, shared_bytes=164 << 10),
    "90": Multiprocessor(warps=64, blocks=32, shared_bytes=228 << 10),
    "90a": Multiprocessor(warps=64, blocks=32, shared_bytes=228 << 10),
    "100": Multiprocessor(warps=64, blocks=32, shared_bytes=228 << 10),
    "120": Multiprocessor(warps=48, blocks=24, shared_bytes=100 << 10),
}


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def resident_blocks(arch: str, threads: int, registers: int, shared_bytes: int) -> int:
    """Return the blocks per multiprocessor of `arch` ("80"); 0 if a block does not fit."""
    limits = MULTIPROCESSORS[arch]
    warps = -(-threads // WARP_SIZE)
    warps_by_registers = (
        _REGISTERS // _round_up(registers * WARP_SIZE, _REGISTER_UNIT) * _SUBPARTITIONS
    )
    shared = _round_up(shared_bytes + _RESERVED_SHARED, _SHARED_UNIT)
    return min(
        limits.blocks,
        limits.warps // warps,
        warps_by_registers // warps,
        limits.shared_bytes // shared,
    )


def occupancy(arch: str, threads: int, blocks: int) -> float:
    """Return the share of the warps that a multiprocessor can hold."""
    return blocks * -(-threads // WARP_SIZE) / MULTIPROCESSORS[arch].warps
