"""Convolutions that write between what others wrote: pixels a pitch apart, the first one after an offset."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import POISON, kernel_rows, run_kernel
from qconv_cases import Case, depthwise, expected, linear, numbers

from qtool.errors import EngineError
from qtool.native import Buffer, KernelRow, Kind, Op, Plan, abi

FAMILIES = ("qconv", "qwinograd", "qtileconv")
ROWS = [row for family in FAMILIES for row in kernel_rows(family)]
DEPTHWISE_ROWS = kernel_rows("qdwconv")
SQUARE = {"kernel": (3, 3), "pad": (1, 1, 1, 1)}
CASES = [
    Case(size=(7, 9), channels=(20, 24), batch=2, **SQUARE),
    Case(size=(6, 5), channels=(3, 17), **SQUARE),
    Case(size=(8, 8), channels=(64, 70), lut=True, **SQUARE),
    Case(size=(5, 5), channels=(16, 64), lut=True, bounds=(3, 200), **SQUARE),
]


DEPTHWISE_CASES = [
    depthwise(24, size=(7, 9), batch=2, **SQUARE),
    depthwise(70, size=(6, 8), lut=True, **SQUARE),
    depthwise(97, size=(9, 7), stride=(2, 2), bounds=(3, 200), **SQUARE),
    depthwise(17, size=(8, 9), kernel=(5, 5), pad=(2, 2, 2, 2)),
    depthwise(32, size=(6, 7), kernel=(3, 3), dilation=(2, 2), pad=(2, 2, 2, 2)),
    depthwise(33, size=(4, 5), kernel=(3, 3), pad=(2, 2, 2, 2)),
]
PLACES = pytest.mark.parametrize(("more", "offset"), [(0, 0), (0, 5), (1, 0), (40, 24), (192, 64)])


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@PLACES
def test_pixels_lie_a_pitch_apart_and_what_is_between_them_stays(row, case, more, offset):
    _check_place(row, case, more, offset)


@pytest.mark.parametrize("row", DEPTHWISE_ROWS)
@pytest.mark.parametrize("case", DEPTHWISE_CASES, ids=range(len(DEPTHWISE_CASES)))
@PLACES
def test_pixels_of_depthwise_convolutions_lie_a_pitch_apart(row, case, more, offset):
    _check_place(row, case, more, offset)


def _check_place(row: KernelRow, case: Case, more: int, offset: int) -> None:
    n = numbers(case, 1)
    channels, pitch = case.channels[1], case.channels[1] + more
    n.args.out_pitch, n.args.out_offset = pitch, offset
    pixels = int(np.prod(case.out_shape[:3]))
    got = run_kernel(row, Kind.QCONV, n.args, [n.x], np.empty(offset + pixels * pitch, np.uint8), threads=2)
    assert (got[:offset] == POISON).all()
    lines = got[offset:].reshape(pixels, pitch)
    np.testing.assert_array_equal(lines[:, :channels].reshape(case.out_shape), expected(case, n))
    assert (lines[:, channels:] == POISON).all()


def _plan(case: Case, size: int = 1 << 20, kind: Kind = Kind.QCONV, **place: int) -> Plan:
    n = numbers(case, 0)
    inputs = (0,) if n.residual is None else (0, 2)
    args = abi.copied(n.args, **place)
    return Plan([Op(kind, inputs, 1, args)], [Buffer(1 << 20), Buffer(size), Buffer(1 << 20)], 0)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("case", "place", "match"),
    [
        (linear(4, 8, 8), {"out_pitch": 7}, "overlap"),
        (linear(4, 8, 8), {"out_pitch": -8}, "overlap"),
        (linear(4, 8, 8), {"out_pitch": 8, "out_offset": -1}, "overlap"),
        (linear(4, 8, 8), {"out_pitch": 1 << 62}, "too large"),
        (linear(4, 8, 8), {"out_pitch": 8, "out_offset": (1 << 63) - 8}, "too large"),
        (linear(4, 8, 8, residual="sum"), {"out_pitch": 16}, "a residual"),
        (linear(4, 8, 8, residual="float"), {"out_pitch": 16}, "a residual"),
        (linear(4, 8, 8), {"out_offset": 16}, "overlap"),
        (depthwise(8, size=(4, 4), **SQUARE), {"out_pitch": 7}, "overlap"),
        (depthwise(8, size=(4, 4), **SQUARE, residual="sum"), {"out_pitch": 16}, "a residual"),
    ],
    ids=range(10),
)
def test_what_cannot_be_placed_is_refused(case, place, match):
    with pytest.raises(EngineError, match=match):
        _plan(case, **place)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize("case", [linear(4, 8, 8), depthwise(8, size=(2, 2), **SQUARE)], ids=["linear", "depthwise"])
def test_the_output_must_hold_the_last_pixel_and_no_more(case):
    place = {"out_pitch": 20, "out_offset": 12}
    assert _plan(case, 12 + 3 * 20 + 8, **place)
    with pytest.raises(EngineError, match="bytes"):
        _plan(case, 12 + 3 * 20 + 7, **place)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("kind", "inputs"), [(Kind.SCONV, (0,)), (Kind.TCONV, (0, 2, 2)), (Kind.TCONV_INPUT_GRAD, (0, 2))]
)
def test_float_convolutions_are_dense(kind, inputs):
    args = abi.make(abi.ConvArgs, **dict.fromkeys(("batch", "in_height", "in_width", "out_height", "out_width"), 1),
                    **dict.fromkeys(("in_channels", "out_channels", "kernel_height", "kernel_width", "groups"), 1),
                    **dict.fromkeys(("stride_height", "stride_width", "dilation_height", "dilation_width"), 1),
                    weight=np.ones((1, 1, 1, 1), np.float32), out_pitch=2)  # fmt: skip
    with pytest.raises(EngineError, match="dense"):
        Plan([Op(kind, inputs, 1, args)], [Buffer(4), Buffer(8), Buffer(4)], 0)
