"""Native plans: what they run, and that a hostile description is an error and nothing else."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import copy_args

from qtool import native
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Pieces, Plan, abi
from qtool.native.library import library

pytestmark = pytest.mark.usefixtures("need_native")


# ---- plans ------------------------------------------------------------------------------------------------------


def _copy(count: int, source: int = 0, target: int = 1, kernel: str | None = None) -> Op:
    return Op(Kind.COPY, (source,), target, copy_args(count), kernel)


def test_a_plan_copies():
    x, y = np.arange(100, dtype=np.uint8), np.zeros(100, np.uint8)
    plan = Plan([_copy(100), _copy(100, 1, 2)], [Buffer(100), Buffer(100, 64), Buffer(100)], 192)
    plan.run(x, y)
    np.testing.assert_array_equal(x, y)
    assert plan.bytes >= 192
    seconds = plan.profile(x, y)
    assert len(seconds) == 2
    assert min(seconds) >= 0


def test_an_empty_plan_runs():
    Plan([], [], 0).run()


def test_buffers_that_no_operator_uses_may_be_empty():
    Plan([], [Buffer(0, 0), Buffer(0)], 0).run(np.zeros(0, np.uint8))


def test_pieces_run_one_after_another():
    """Each goes through the same place in the arena, and the sum of all is copied once."""
    x, y, z = np.arange(96, dtype=np.uint8), np.zeros(96, np.uint8), np.zeros(96, np.uint8)
    buffers = [Buffer(96, None, 32), Buffer(32, 64), Buffer(96, None, 32), Buffer(96)]
    ops = [_copy(32), _copy(32, 1, 2), _copy(96, 2, 3)]
    plan = Plan(ops, buffers, 192, pieces=Pieces(3, 2))
    plan.run(x, y, z)
    np.testing.assert_array_equal(z, x)
    assert len(plan.profile(x, y, z)) == 3
    with pytest.raises(EngineError, match="run all together"):
        plan.run_part(0, 1, x, y, z)


BAD_PIECES = [
    ([Buffer(95, None, 32), Buffer(96, None, 32)], "input 0 has 95 bytes, expected 96"),
    ([Buffer(96, None, 32), Buffer(95, None, 32)], "the output has 95 bytes, expected 96"),
    ([Buffer(96, None, 2**62), Buffer(96)], "pieces are not within"),
    ([Buffer(96, None, -32), Buffer(96)], "pieces are not within"),
    ([Buffer(96, None, 97), Buffer(96)], "pieces are not within"),
]


@pytest.mark.parametrize(("buffers", "message"), BAD_PIECES)
def test_pieces_stay_within_their_buffers(buffers, message):
    with pytest.raises(EngineError, match=message):
        Plan([_copy(32)], buffers, 0, pieces=Pieces(3, 1))


BAD_PLANS = [
    ([Op(Kind.COPY, (2,), 1, copy_args(8))], [Buffer(64), Buffer(64)], "input 0 is no buffer"),
    ([Op(Kind.COPY, (-1,), 1, copy_args(8))], [Buffer(64), Buffer(64)], "input 0 is no buffer"),
    ([Op(Kind.COPY, (0,), 7, copy_args(8))], [Buffer(64), Buffer(64)], "the output is no buffer"),
    ([Op(Kind.COPY, (0, 0), 1, copy_args(8))], [Buffer(64), Buffer(64)], "got 2 inputs, expected 1"),
    ([Op(Kind.COPY, (), 1, copy_args(8))], [Buffer(64), Buffer(64)], "got 0 inputs, expected 1"),
    ([_copy(65)], [Buffer(64), Buffer(65)], "input 0 has 64 bytes, expected 65"),
    ([_copy(65)], [Buffer(65), Buffer(64)], "the output has 64 bytes, expected 65"),
    ([], [Buffer(64, 65)], "multiple of 64"),
    ([], [Buffer(64, -64)], "multiple of 64"),
    ([], [Buffer(1025, 0)], "after the arena"),
    ([], [Buffer(1, 1024)], "after the arena"),
    ([], [Buffer(2**63 - 1, 64)], "after the arena"),
    ([], [Buffer(64, 2**62)], "after the arena"),
    ([], [Buffer(-1)], "negative"),
    ([_copy(8, kernel="nothing")], [Buffer(64), Buffer(64)], r"operator 0 \(layout\): no kernel nothing"),
    ([_copy(8), _copy(8, kernel="")], [Buffer(64), Buffer(64)], "operator 1"),
]


@pytest.mark.parametrize(("ops", "buffers", "message"), BAD_PLANS)
def test_bad_plans_say_what_is_wrong(ops, buffers, message):
    with pytest.raises(EngineError, match=message):
        Plan(ops, buffers, 1024)


@pytest.mark.parametrize("arena", [-1, -(2**63), 2**42 + 1, 2**63 - 1])
def test_absurd_arenas(arena):
    with pytest.raises(EngineError, match="arena"):
        Plan([], [], arena)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31 - 1])
def test_absurd_thread_counts(threads):
    with pytest.raises(EngineError, match="threads"):
        Plan([], [], 0, threads=threads)


@pytest.mark.parametrize("isa", ["sse9", "", "amx2"])
def test_unknown_instruction_sets(isa):
    with pytest.raises(EngineError, match="no such instruction set"):
        Plan([], [], 0, isa=isa)


def test_arrays_are_checked():
    plan = Plan([_copy(100)], [Buffer(100), Buffer(100)], 0)
    good = np.zeros(100, np.uint8)
    bad = [np.zeros(99, np.uint8), np.zeros(200, np.uint8)[::2], [0] * 100, None]
    for array in bad:
        with pytest.raises(EngineError, match="array 1"):
            plan.run(good, array)
    with pytest.raises(EngineError, match="got 1 arrays, expected 2"):
        plan.run(good)


def test_argument_structures_are_checked():
    with pytest.raises(EngineError, match="expected CopyArgs"):
        Plan([Op(Kind.COPY, (0,), 1, abi.LutArgs())], [Buffer(1), Buffer(1)], 0)
    with pytest.raises(EngineError, match="expected uint8"):
        abi.make(abi.LutArgs, count=1, table=np.zeros(256, np.int8))
    with pytest.raises(EngineError, match="strided"):
        abi.make(abi.LutArgs, count=1, table=np.zeros(512, np.uint8)[::2])
    with pytest.raises(EngineError, match="at most 4"):
        Plan([Op(Kind.COPY, (0,) * 5, 1, copy_args(1))], [Buffer(1), Buffer(1)], 0)


def _create(desc: abi.CPlanDesc | None) -> tuple[int, str]:
    """The status and the error of a raw description; a plan that is made is run if it needs nothing, and freed."""
    handle, error = ctypes.c_void_p(), ctypes.create_string_buffer(256)
    status = library().qt_plan_create(None if desc is None else ctypes.byref(desc), ctypes.byref(handle), error, 256)
    if status == abi.Status.OK:
        library().qt_plan_free(handle)
    return status, error.value.decode()


def _desc(ops: list[abi.COp], buffers: list[abi.CBuffer], /, **changes: object) -> abi.CPlanDesc:
    desc = abi.CPlanDesc(abi.ABI, 0, 1, len(buffers), len(ops), 1, 0, 0, 4096)
    desc.buffers = (abi.CBuffer * max(1, len(buffers)))(*buffers)
    desc.ops = (abi.COp * max(1, len(ops)))(*ops)
    for name, value in changes.items():
        setattr(desc, name, value)
    return desc


RAW = [
    ({"abi": abi.ABI + 1}, "another version"),
    ({"isa": -1}, "no such instruction set"),
    ({"isa": len(abi.ISAS)}, "no such instruction set"),
    ({"buffer_count": -1}, "number of buffers"),
    ({"buffer_count": 2**31 - 1}, "number of buffers"),
    ({"op_count": -5}, "number of operators"),
    ({"pieces": 0}, "number of pieces"),
    ({"pieces": 2**24 + 1}, "number of pieces"),
    ({"piece_ops": -1}, "operators of a piece"),
    ({"piece_ops": 1}, "operators of a piece"),
    ({"op_count": 2**31 - 1}, "number of operators"),
    ({"op_count": 3, "ops": None}, "no operators"),
    ({"buffer_count": 3, "buffers": None}, "no buffers"),
]


@pytest.mark.parametrize(("changes", "message"), RAW)
def test_raw_descriptions(changes, message):
    status, error = _create(_desc([], [], **changes))
    assert status == abi.Status.INVALID
    assert message in error


def test_null_pointers_are_errors():
    error = ctypes.create_string_buffer(64)
    assert _create(None)[0] == abi.Status.INVALID
    desc = _desc([], [])
    assert library().qt_plan_create(ctypes.byref(desc), None, error, 64) == abi.Status.INVALID
    assert library().qt_plan_create(ctypes.byref(desc), None, None, 0) == abi.Status.INVALID
    assert library().qt_plan_run(None, None, error, 64) == abi.Status.INVALID
    assert library().qt_plan_profile(None, None, None, error, 64) == abi.Status.INVALID
    assert library().qt_plan_kernel(None, 0) is None
    assert library().qt_plan_bytes(None) == 0
    library().qt_plan_free(None)


def test_external_buffers_have_to_be_bound():
    desc = _desc([], [abi.CBuffer(1, 0, 0, 8)])
    handle, error = ctypes.c_void_p(), ctypes.create_string_buffer(64)
    assert library().qt_plan_create(ctypes.byref(desc), ctypes.byref(handle), error, 64) == abi.Status.OK
    assert library().qt_plan_run(handle, None, error, 64) == abi.Status.INVALID
    assert library().qt_plan_run(handle, (ctypes.c_void_p * 1)(None), error, 64) == abi.Status.INVALID
    library().qt_plan_free(handle)


def test_errors_are_cut_to_the_space_there_is():
    error = ctypes.create_string_buffer(b"x" * 10, 10)
    handle, desc = ctypes.c_void_p(), _desc([], [], abi=9)
    library().qt_plan_create(ctypes.byref(desc), ctypes.byref(handle), error, 5)
    assert error.raw == b"the \0xxxxx"


def test_unknown_kinds_and_missing_arguments():
    for kind in (-1, 1000, 2**31 - 1, -(2**31)):
        status, error = _create(_desc([abi.COp(kind, 1)], [abi.CBuffer(0, 0, 0, 8)]))
        assert status == abi.Status.UNSUPPORTED
        assert "kind" in error
    status, error = _create(_desc([abi.COp(int(Kind.COPY), 1)], [abi.CBuffer(0, 0, 0, 8)]))
    assert (status, "no arguments" in error) == (abi.Status.INVALID, True)


NUMBERS = st.one_of(st.integers(-3, 130), st.sampled_from([2**31 - 1, -(2**31), 2**30, 65536, 4096]))
LONGS = st.one_of(NUMBERS, st.sampled_from([2**63 - 1, -(2**63), 2**62, 2**40]))


def hostile(c_type) -> st.SearchStrategy[object]:
    """Any number, or array of numbers, of a C type."""
    if c_type is ctypes.c_float:
        return st.floats(width=32)
    if issubclass(c_type, ctypes.Array):
        return st.lists(NUMBERS, min_size=c_type._length_, max_size=c_type._length_).map(lambda n: c_type(*n))
    return LONGS if c_type is ctypes.c_int64 else NUMBERS


MEGABYTE_OF_ZEROS = ctypes.create_string_buffer(1 << 20)


_PICTURE = {"batch": 2, "in_height": 5, "in_width": 6, "channels": 7, "out_height": 4, "out_width": 5}
_ONES = "stride_height stride_width dilation_height dilation_width count_include_pad kind x_scale out_scale"
_WINDOW = {"kernel_height": 2, "kernel_width": 2, **dict.fromkeys(re.split(" ", _ONES), 1)}
_BINARY = {"rows": 6, "channels": 9, "a_scale": 0.5, "b_scale": 0.25, "inv_scale": 2.0, "out_max": 255}
SOUND: dict[Kind, dict[str, object]] = {
    Kind.QUANTIZE: {"outer": 2, "rows": 3, "cols": 20, "transpose": 1, "zero_point": 5, "scale": 0.1},
    Kind.DEQUANTIZE: {"outer": 2, "rows": 3, "cols": 20, "transpose": 1, "zero_point": 5, "scale": 0.1},
    Kind.COPY: {"rows": 5, "row_bytes": 9, "in_stride": 10, "out_stride": 12, "in_offset": 3, "out_offset": 1},
    Kind.PERMUTE: {"rank": 3, "element_bytes": 4, "shape": (2, 3, 5, 0, 0, 0), "order": (2, 0, 1, 0, 0, 0)},
    Kind.LUT: {"count": 100, "table": np.arange(256, dtype=np.uint8)},
    Kind.SUNARY: {"count": 50, "kind": 5, "a": 0.0, "b": 1.0},
    Kind.SBINARY: {**_BINARY, "out_min_f": -1.0, "out_max_f": 1.0},
    Kind.QBINARY: {**_BINARY, "rows_per_b": 2},
    Kind.QPOOL: {**_PICTURE, **_WINDOW},
    Kind.SPOOL: {**_PICTURE, **_WINDOW},
    Kind.TNORM: {"rows": 7, "channels": 9, "eps": 0.1},
    Kind.TAFFINE: {"rows": 7, "channels": 9},
    Kind.TSUMS: {"rows": 7, "channels": 9},
    Kind.TFAKE_QUANT: {"rows": 7, "n": 9, "low": -8.0, "high": 7.0},
    Kind.TMIN_MAX: {"rows": 7, "n": 9},
    Kind.TCLAMP_GRAD: {"count": 50, "low": 0.0, "high": 1.0},
}
"""Sound arguments of the kinds that lead to no array, or to one of a known size."""
TWO_INPUTS = {Kind.QBINARY, Kind.SBINARY, Kind.TNORM, Kind.TAFFINE, Kind.TFAKE_QUANT, Kind.TCLAMP_GRAD}
LENGTHS = {(Kind.LUT, "channels")}
"""Numbers that say how long an array of the caller's is: only the caller knows whether they are right."""


@pytest.mark.parametrize("kind", SOUND)
@settings(max_examples=200)
@given(data=st.data())
def test_no_arguments_crash(kind, data):
    """Sound arguments with some numbers changed to any: an error, or a plan that runs inside of its buffers."""
    args = abi.make(abi.ARGS[kind], **SOUND[kind])
    fields = [f for f in args._fields_ if f[1] is not ctypes.c_void_p and (kind, f[0]) not in LENGTHS]
    changed = data.draw(st.lists(st.sampled_from(fields), max_size=3, unique_by=lambda field: field[0]))
    for name, c_type in changed:
        setattr(args, name, data.draw(hostile(c_type)))
    sizes = (
        data.draw(st.lists(st.sampled_from([0, 64, 4096, 1 << 20]), min_size=3, max_size=3))
        if changed
        else [1 << 20] * 3
    )
    isa = data.draw(st.sampled_from(native.supported_isas()))
    inputs = (0, 1) if kind in TWO_INPUTS else (0,)
    buffers = [Buffer(size, index << 21) for index, size in enumerate(sizes)]
    try:
        plan = Plan([Op(kind, inputs, 2, args)], buffers, 3 << 21, isa=isa)
    except EngineError:
        assert changed, "the arguments were sound"
        return
    plan.run()


@settings(max_examples=300)
@given(data=st.data())
def test_no_list_of_operators_crashes(data):
    ops = [
        abi.COp(
            data.draw(st.integers(-1, 17)),
            data.draw(NUMBERS),
            (ctypes.c_int32 * 4)(*data.draw(st.lists(NUMBERS, min_size=4, max_size=4))),
            data.draw(NUMBERS),
            0,
            data.draw(st.sampled_from([ctypes.addressof(MEGABYTE_OF_ZEROS), None])),
            data.draw(st.sampled_from([None, b"", b"layout_avx2", b"layout_scalar"])),
        )
        for _ in range(data.draw(st.integers(0, 3)))
    ]
    buffers = [
        abi.CBuffer(data.draw(st.integers(0, 2)), 0, data.draw(LONGS), data.draw(LONGS))
        for _ in range(data.draw(st.integers(0, 3)))
    ]
    status, error = _create(_desc(ops, buffers, arena_bytes=data.draw(LONGS)))
    assert (status == abi.Status.OK) == (error == "")
