"""A native plan: a list of operators over numbered buffers, checked and packed once, run many times."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.errors import EngineError
from qtool.native import abi
from qtool.native.library import isa_note, library, supported_isas

ERROR_BYTES = 512
_Error = ctypes.c_char * ERROR_BYTES


@dataclass(frozen=True)
class Buffer:
    """Memory of a plan: ``bytes`` at ``offset`` of its arena, or an array of the caller where ``offset`` is None.

    Operators that run once for each piece of a batch find their bytes ``piece_bytes`` further in each.
    """

    bytes: int
    offset: int | None = None
    piece_bytes: int = 0


@dataclass(frozen=True)
class Pieces:
    """The first ``ops`` operators of a plan run ``count`` times, all of them for one piece before the next."""

    count: int = 1
    ops: int = 0


WHOLE = Pieces()


@dataclass(frozen=True)
class Op:
    """One operator: ``inputs`` and ``output`` number the plan's buffers; ``kernel`` names the one row to use."""

    kind: abi.Kind
    inputs: tuple[int, ...]
    output: int
    args: abi.Args
    kernel: str | None = None


def choose_isa(isa: str | None) -> str:
    """The instruction set of that name, the best of this CPU for None; EngineError for one that is not to be had."""
    have = supported_isas()
    if isa is None:
        return have[-1] if have else abi.ISAS[0]
    if isa not in have:
        known = isa_note(isa) if isa in abi.ISAS else "there is no such instruction set"
        raise EngineError(f"instruction set '{isa}': {known}; expected one of {', '.join(have)}")
    return isa


class Plan:
    """Runs a list of operators in one native call.

    ``run`` takes one C-contiguous array for each external buffer, in order. It lets other Python threads work, and
    raises EngineError when it is called while it runs already.

    What a run of the whole plan passes through is kept short: right after the run before, which has filled the caches,
    each line of Python takes microseconds.
    """

    def __init__(
        self,
        ops: Sequence[Op],
        buffers: Sequence[Buffer],
        arena_bytes: int,
        *,
        isa: str | None = None,
        threads: int = 1,
        pieces: Pieces = WHOLE,
    ) -> None:
        self._external = tuple(buffer.bytes for buffer in buffers if buffer.offset is None)
        self._pointers = ctypes.c_void_p * max(1, len(self._external))
        self._run = library().qt_plan_run
        self._op_count = len(ops)
        machine = (abi.ISAS.index(choose_isa(isa)), threads)
        sizes = (len(buffers), len(ops), pieces.count, pieces.ops, 0, arena_bytes)
        self._handle = _create(abi.CPlanDesc(abi.ABI, *machine, *sizes, _c_buffers(buffers), _c_ops(ops)))
        self._finalizer = weakref.finalize(self, library().qt_plan_free, self._handle)

    def run(self, *arrays: NDArray[Any]) -> None:
        """Reads and writes the arrays in place."""
        error = _Error()
        status = self._run(self._handle, self._addresses(arrays), error, ERROR_BYTES)
        if status != abi.Status.OK:
            _check(status, error)

    def profile(self, *arrays: NDArray[Any]) -> list[float]:
        """As ``run``; gives the seconds of each operator."""
        addresses = self._addresses(arrays)
        seconds = (ctypes.c_double * max(1, self._op_count))()
        error = _Error()
        _check(library().qt_plan_profile(self._handle, addresses, seconds, error, ERROR_BYTES), error)
        return list(seconds)[: self._op_count]

    def run_part(self, first: int, last: int, *arrays: NDArray[Any]) -> None:
        """As ``run``, of the operators ``first`` to ``last`` - 1 only."""
        addresses = self._addresses(arrays)
        error = _Error()
        _check(library().qt_plan_run_part(self._handle, addresses, first, last, error, ERROR_BYTES), error)

    def view(self, buffer: int, count: int) -> NDArray[np.uint8]:
        """The first ``count`` bytes of a buffer of the arena; what lies there changes as the plan runs on."""
        address = library().qt_plan_address(self._handle, buffer)
        if address is None:
            raise EngineError(f"buffer {buffer} is not in the arena")
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))

    @property
    def kernels(self) -> tuple[str, ...]:
        """Name of the kernel row that each operator runs on."""
        names = (library().qt_plan_kernel(self._handle, i) for i in range(self._op_count))
        return tuple(name.decode() for name in names)

    @property
    def bytes(self) -> int:
        """Memory of the plan: arena, packed weights and scratch."""
        return int(library().qt_plan_bytes(self._handle))

    def _addresses(self, arrays: Sequence[NDArray[Any]]) -> Any:
        if len(arrays) != len(self._external):
            raise EngineError(f"got {len(arrays)} arrays, expected {len(self._external)}")
        pointers = self._pointers()
        for i, size in enumerate(self._external):
            array = arrays[i]
            if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or array.nbytes != size:
                what = f"{array.nbytes} bytes" if isinstance(array, np.ndarray) else type(array).__name__
                raise EngineError(f"array {i}: got {what}, expected a C-contiguous array of {size} bytes")
            pointers[i] = array.__array_interface__["data"][0]  # array.ctypes would run Python code
        return pointers


def _create(desc: abi.CPlanDesc) -> int:
    handle = ctypes.c_void_p()
    error = _Error()
    status = library().qt_plan_create(ctypes.byref(desc), ctypes.byref(handle), error, ERROR_BYTES)
    _check(status, error)
    assert handle.value is not None
    return handle.value


def _c_buffers(buffers: Sequence[Buffer]) -> ctypes.Array[abi.CBuffer]:
    c_buffers = (abi.CBuffer * max(1, len(buffers)))()
    for i, buffer in enumerate(buffers):
        c_buffers[i] = abi.CBuffer(int(buffer.offset is None), 0, buffer.offset or 0, buffer.bytes, buffer.piece_bytes)
    return c_buffers


def _c_ops(ops: Sequence[Op]) -> ctypes.Array[abi.COp]:
    return (abi.COp * max(1, len(ops)))(*map(_c_op, ops))


def _c_op(op: Op) -> abi.COp:
    if len(op.inputs) > abi.MAX_INPUTS:
        raise EngineError(f"operator {op.kind.name} has {len(op.inputs)} inputs, expected at most {abi.MAX_INPUTS}")
    if not isinstance(op.args, abi.ARGS[op.kind]):
        got, expected = type(op.args).__name__, abi.ARGS[op.kind].__name__
        raise EngineError(f"operator {op.kind.name} has {got}, expected {expected}")
    inputs = (ctypes.c_int32 * abi.MAX_INPUTS)(*op.inputs)
    kernel = op.kernel.encode() if op.kernel is not None else None
    return abi.COp(int(op.kind), len(op.inputs), inputs, op.output, 0, ctypes.addressof(op.args), kernel)


def _check(status: int, error: ctypes.Array[ctypes.c_char]) -> None:
    if status != abi.Status.OK:
        raise EngineError(error.value.decode(errors="replace"))
