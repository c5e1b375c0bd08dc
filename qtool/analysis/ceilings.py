"""What this machine can do at most, measured: products in int8 and float32, and reading from each level of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qtool.ir import Array
from qtool.native import Buffer, Kind, Op, Plan, abi, supported_isas

OPERATIONS = {abi.Ceiling.INT8: 128, abi.Ceiling.FLOAT: 32}
"""Of a round, a multiply-accumulate counted as two."""
LEAST_ROUNDS = 1024
"""Of products; kernels do them in blocks of so many."""
LEAST_SECONDS, REPEATS = 0.002, 40
"""Short runs, and many: on a machine that others use some of them are left alone."""
PAGE = 4096
MEMORY_BYTES = 1 << 30
"""At most so much is read to measure memory."""
CACHES = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
"""Sizes in bytes where the system does not tell."""
CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Ceilings:
    """Rates of ``threads`` threads together. ``int8`` and ``float32`` are 1e9 operations a second by instruction set (a
    multiply-accumulate counts two), ``read`` 1e9 bytes a second by level; ``bytes`` is what a thread read there."""

    threads: int
    int8: Mapping[str, float]
    float32: Mapping[str, float]
    read: Mapping[str, float]
    bytes: Mapping[str, int]

    def peak(self, isa: str, *, int8: bool) -> float:
        """The most 1e9 operations a second with an instruction set or those below it."""
        rates = self.int8 if int8 else self.float32
        within = abi.ISAS[: abi.ISAS.index(isa) + 1]
        return max(rate for name, rate in rates.items() if name in within)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure_ceilings(threads: int = 1) -> Ceilings:
    """Takes a second or two. EngineError without the native library."""
    isas = supported_isas()
    small = _filled(threads * LEAST_ROUNDS)
    int8, float32 = (
        {isa: OPERATIONS[kind] * _rate(kind, isa, threads, small) / 1e9 for isa in isas}
        for kind in (abi.Ceiling.INT8, abi.Ceiling.FLOAT)
    )
    sizes = read_sizes(threads)
    read = {}
    for level, size in sizes.items():
        data = _filled(threads * size)
        read[level] = size * _rate(abi.Ceiling.READ, isas[-1], threads, data) / 1e9
    return Ceilings(threads, int8, float32, read, sizes)


def read_sizes(threads: int) -> dict[str, int]:
    """Bytes that each thread reads to measure a level: half of a cache of its own, a part of the shared one that is
    much larger than L2, and for memory twice what L3 holds."""
    caches = cache_sizes()
    shared = max(2 * caches["L2"], min(caches["L3"] // 2 // threads, 16 * caches["L2"]))
    memory = min(max(2 * caches["L3"], 1 << 28), MEMORY_BYTES) // threads
    sizes = {"L1": caches["L1"] // 2, "L2": caches["L2"] // 2, "L3": shared, "memory": memory}
    return {level: size // PAGE * PAGE for level, size in sizes.items()}


def cache_sizes(folder: Path = CACHE_FOLDER) -> dict[str, int]:
    """Bytes of each cache as Linux tells them; usual ones where it does not."""
    found = dict(CACHES)
    for entry in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((entry / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction" and size.endswith("K"):
                found[f"L{level}"] = int(size[:-1]) << 10
        except (OSError, ValueError):
            continue
    return {level: found[level] for level in CACHES}


def _filled(size: int) -> Array:
    """Written to, so that every page has memory of its own; begins a page."""
    data = np.ones(size + PAGE, np.uint8)
    start = -data.ctypes.data % PAGE
    return data[start : start + size]


def _rate(kind: abi.Ceiling, isa: str, threads: int, data: Array) -> float:
    """Rounds a second, all threads together: the best of several runs that are long enough to count."""
    rounds = 1 if kind is abi.Ceiling.READ else LEAST_ROUNDS
    out = np.empty(threads, np.int64)

    def seconds(rounds: int, repeats: int) -> float:
        args = abi.make(abi.CeilingArgs, kind=kind, chunks=threads, bytes=data.nbytes // threads, rounds=rounds)
        buffers = [Buffer(data.nbytes), Buffer(out.nbytes)]
        plan = Plan([Op(Kind.CEILING, (0,), 1, args)], buffers, 0, isa=isa, threads=threads)
        return min(plan.profile(data, out)[0] for _ in range(repeats))

    while (taken := seconds(rounds, 1)) < LEAST_SECONDS:
        rounds *= max(2, min(64, int(1.2 * LEAST_SECONDS / max(taken, 1e-9))))
    return threads * rounds / min(taken, seconds(rounds, REPEATS))
