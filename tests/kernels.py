"""Running one native kernel row on arrays: for the tests of every kernel family.

    @pytest.mark.parametrize("row", kernel_rows("layout"))
    def test_something(row):
        got = run_kernel(row, Kind.COPY, args, [x], np.empty(shape, np.uint8))

What ran is remembered; the session fails at its end when a row that this CPU can run was never run (see conftest.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool import native
from qtool.native import Buffer, KernelRow, Kind, Op, Plan, abi

SOURCE = Path(__file__).resolve().parent.parent / "qtool" / "native"
GUARD = 4096
POISON = 0xA5

covered: set[str] = set()
"""Names of the kernel rows that ran in this session."""


def kernel_rows(family: str) -> list[Any]:
    """The family's rows as pytest parameters; those this CPU cannot run are skipped with the reason."""
    if not native.available():
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=native.why_not()))]
    rows = [row for row in native.kernels() if row.family == family]
    assert rows, f"the library has no kernel family {family}"
    return [pytest.param(row, id=row.name, marks=_marks(row)) for row in rows]


def _marks(row: KernelRow) -> list[pytest.MarkDecorator]:
    if row.isa in native.supported_isas():
        return []
    return [pytest.mark.skip(reason=f"this CPU does not have {row.isa}")]


def compile_flags(isa: str = "") -> list[str]:
    """How the files of an instruction set, or all others, are compiled."""
    flags = {"": ""}
    for name, text in re.findall(r"set\(QT_FLAGS_(\w+) (.*)\)", (SOURCE / "CMakeLists.txt").read_text()):
        flags[name] = re.sub(r"\$\{QT_FLAGS_(\w+)\}", lambda match: flags[match[1]], text)
    defined = [f"-D{name}=1" for name in ("QT_X86", "QT_AVXVNNI", "QT_AMX")]
    return ["-std=c++17", "-ffp-contract=off", *defined, f"-I{SOURCE}", *flags[isa].split()]


def isas() -> list[Any]:
    """The instruction sets of this CPU as pytest parameters."""
    if not native.available():
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=native.why_not()))]
    return list(native.supported_isas())


def run_kernel(
    row: KernelRow, kind: Kind, args: abi.Args, inputs: Sequence[np.ndarray], like: np.ndarray, *, threads: int = 1
) -> np.ndarray:
    """The output, of the shape and type of ``like``, of one operator run on exactly this row.

    Inputs and output lie in an arena that is filled with garbage first, as in a real plan, so that what a kernel reads
    past the end of an input cannot help it; that it writes outside of its output is an assertion error.
    """
    builder = _Arena()
    builder.fill()
    slots = [builder.load(np.ascontiguousarray(x)) for x in inputs]
    builder.space(GUARD)
    start = builder.end
    output = builder.space(like.nbytes)
    builder.space(GUARD)
    builder.ops.append(Op(kind, tuple(slots), output, args, row.name))
    back = builder.unload(start - GUARD, like.nbytes + 2 * GUARD)
    plan = Plan(builder.ops, builder.buffers, builder.end, isa=row.isa, threads=threads)
    assert plan.kernels[-2] == row.name
    plan.run(*builder.arrays)
    got, guards = _split(back, like)
    assert (guards == POISON).all(), f"{row.name} writes outside of its output"
    covered.add(row.name)
    return got


def _split(back: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    end = GUARD + like.nbytes
    got = back[GUARD:end].copy().view(like.dtype).reshape(like.shape)
    return got, np.concatenate([back[:GUARD], back[end:]])


def copy_args(count: int) -> abi.CopyArgs:
    """Arguments of a plain copy of ``count`` bytes."""
    return abi.make(abi.CopyArgs, rows=1, row_bytes=count)


class _Arena:
    """Buffers one after another; the arrays of the external ones in order."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.buffers: list[Buffer] = []
        self.arrays: list[np.ndarray] = []
        self.end = 0

    def fill(self) -> None:
        self.garbage = len(self.buffers)
        self.arrays.append(np.empty(0, np.uint8))  # its size is known in the end
        self.buffers += [Buffer(0), Buffer(0, 0)]
        self.ops.append(Op(Kind.COPY, (0,), 1, copy_args(0)))

    def space(self, size: int) -> int:
        self.buffers.append(Buffer(size, self.end))
        self.end += -(-size // 64) * 64
        return len(self.buffers) - 1

    def load(self, array: np.ndarray) -> int:
        outside = self._external(array)
        inside = self.space(array.nbytes)
        self.ops.append(Op(Kind.COPY, (outside,), inside, copy_args(array.nbytes)))
        return inside

    def unload(self, start: int, size: int) -> np.ndarray:
        self.end += GUARD
        array = np.zeros(size, np.uint8)
        self.buffers.append(Buffer(size, start))
        self.ops.append(Op(Kind.COPY, (len(self.buffers) - 1,), self._external(array), copy_args(size)))
        self.arrays[0] = np.full(self.end, POISON, np.uint8)
        self.buffers[:2] = [Buffer(self.end), Buffer(self.end, 0)]
        self.ops[0] = Op(Kind.COPY, (0,), 1, copy_args(self.end))
        return array

    def _external(self, array: np.ndarray) -> int:
        self.arrays.append(array)
        self.buffers.append(Buffer(array.nbytes))
        return len(self.buffers) - 1
