"""Winograd's algorithm in integers: every row against NumPy, exactly, and what it must refuse."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import kernel_rows, run_kernel
from qconv_cases import Case, Numbers, expected, numbers

from qtool import native
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan

ROWS = kernel_rows("qwinograd")
SHIFT = {2: 2, 4: 6}  # powers of two in the factor of the sums, by the tile's size


def filtered(inputs: int, outputs: int, **more: Any) -> Case:
    return Case(channels=(inputs, outputs), kernel=(3, 3), **{"pad": (1, 1, 1, 1), **more})


def _run(row: Any, case: Case, n: Numbers, threads: int = 1) -> np.ndarray:
    inputs = [n.x] if n.residual is None else [n.x, n.residual]
    return run_kernel(row, Kind.QCONV, n.args, inputs, np.empty(case.out_shape, np.uint8), threads=threads)


def check(row: Any, case: Case, threads: int = 1, **changes: int) -> None:
    n = numbers(case, zlib.crc32(repr(case).encode()))
    for name, value in changes.items():
        setattr(n.args, name, value)
    np.testing.assert_array_equal(_run(row, case, n, threads), expected(case, n), err_msg=repr((case, changes)))


COUNTS = (*range(1, 21), 31, 32, 33, 63, 64, 65)
CHANNELS = [
    *(filtered(c, 20, size=(5, 6)) for c in COUNTS),
    *(filtered(18, c, size=(6, 5)) for c in COUNTS),
]
SIZES = [
    *(filtered(5, 7, size=(h, w)) for h in range(1, 10) for w in (1, 2, h, 9)),
    *(filtered(17, 9, size=(size, size)) for size in (14, 28)),
    filtered(3, 4, size=(3, 90)),
    filtered(3, 4, size=(90, 3)),
]
PADS = [
    *(filtered(4, 5, size=(6, 7), pad=(a, b, c, d)) for a, b, c, d in ((0, 0, 0, 0), (0, 1, 2, 0), (2, 0, 0, 1))),
    filtered(4, 5, size=(6, 7), pad=(2, 2, 2, 2), batch=2),
    filtered(4, 5, size=(1, 1), pad=(7, 5, 3, 9)),
    filtered(4, 5, size=(7, 9), pad=(0, 0, 1, 1), batch=3),
]
LARGE = [  # several chunks of tiles, the last smaller; more of the weights than of the pictures
    filtered(64, 40, size=(21, 23), batch=2),
    filtered(130, 33, size=(9, 9)),
    filtered(256, 64, size=(7, 7)),
    filtered(8, 8, size=(5, 5), batch=30),
]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("cases", [CHANNELS, SIZES, PADS, LARGE], ids=range(4))
def test_convolution(row, cases):
    for case in cases:
        check(row, case)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("residual", ["none", "sum", "float", "fixed"])
@pytest.mark.parametrize("lut", [False, True])
def test_epilogue(row, residual, lut):
    for case in (filtered(6, 20, size=(9, 9)), filtered(20, 32, size=(5, 11), batch=2)):
        for bias in ("float", "int", "both", "none"):
            check(row, replace(case, residual=residual, lut=lut, bias=bias))
        check(row, replace(case, residual=residual, lut=lut, bounds=(3, 200)))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("x_zero", [0, 1, 128, 255])
@pytest.mark.parametrize("values", ["low", "high", "mixed", "random"])
def test_extreme_values(row, x_zero, values):
    """Where 16 bits of the transformed input or weights would overflow, and sums that are as large as they may be."""
    for case in (filtered(64, 24, size=(8, 9), values=values), filtered(9, 5, size=(7, 5), values=values)):
        check(row, case, x_zero=x_zero)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("x_zero", [0, 255])
def test_inputs_and_weights_that_transform_to_the_largest_numbers(row, x_zero):
    """Bytes and weights whose signs follow the outer product of two rows of the matrices."""
    columns = {
        "input": [(1, 0, -1, 0, 1, 0), (-1, -1, -1, 1, 1, 0), (0, 1, -1, -1, 1, 0), (0, 1, 0, -1, 0, 1)],
        "weight": [(1, 1, 1), (1, -1, 1)],
    }
    case = filtered(16, 4, size=(6, 6), pad=(0, 0, 0, 0))
    n = numbers(case, 3)
    n.args.x_zero = x_zero
    for sign in (1, -1):
        for a in columns["input"]:
            for b in columns["input"]:
                n.x[:] = np.where(sign * np.outer(a, b) > 0, 255, 0)[None, :, :, None]
                for o, (c, d) in enumerate((c, d) for c in columns["weight"] for d in columns["weight"]):
                    n.weight[o] = np.where(np.outer(c, d) > 0, 127, -128)[:, :, None]
                np.testing.assert_array_equal(_run(row, case, n), expected(case, n))


@pytest.mark.parametrize("row", ROWS)
def test_every_number_of_threads_gives_the_same_bits(row):
    for case in (filtered(6, 70, size=(23, 31), residual="float", lut=True), filtered(70, 130, size=(6, 7), lut=True)):
        for threads in (1, 2, 3, 5):
            check(row, case, threads)


@st.composite
def convolutions(draw: Any) -> Case:
    return filtered(
        draw(st.integers(1, 80)),
        draw(st.integers(1, 80)),
        batch=draw(st.integers(1, 3)),
        size=(draw(st.integers(3, 14)), draw(st.integers(3, 14))),
        pad=draw(st.tuples(*[st.integers(0, 3)] * 4)),
        values=draw(st.sampled_from(["random", "mixed"])),
        bias=draw(st.sampled_from(["float", "int"])),
        residual=draw(st.sampled_from(["none", "sum", "float", "fixed"])),
        lut=draw(st.booleans()),
    )


@pytest.mark.parametrize("row", ROWS)
@settings(max_examples=40)
@given(case=convolutions(), threads=st.sampled_from([1, 2]))
def test_any_convolution(row, case, threads):
    check(row, case, threads)


def _plan(n: Numbers, kernel: str | None = None, isa: str | None = None) -> Plan:
    buffers = [Buffer(1 << 22), Buffer(1 << 22)]
    return Plan([Op(Kind.QCONV, (0,), 1, n.args, kernel)], buffers, 0, isa=isa)


def _at_the_bound(size: int, x_zero: int, over: int) -> tuple[Case, Numbers]:
    """A channel of weights of one sign, and the input for which its sum is the largest: the last that the kernel can
    tell apart, or one that is larger by ``over``."""
    total = ((1 << (31 - SHIFT[size])) - 1 + over) // 255
    case = filtered(total // (9 * 127) + 1, 1, size=(3, 3), pad=(0, 0, 0, 0), bias="none")
    n = numbers(case, 4)
    n.args.x_zero = x_zero
    n.x[:] = 255 - x_zero
    weight = n.weight.reshape(-1)
    weight[:] = 0
    weight[: total // 127] = 127
    weight[total // 127] = total % 127
    n.multiplier[:] = 128 / (total * 255)
    return case, n


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("x_zero", [0, 255])
def test_sums_up_to_the_bound_are_exact_and_beyond_it_refused(row, x_zero):
    size = int(row.name[-1])
    case, n = _at_the_bound(size, x_zero, 0)
    np.testing.assert_array_equal(_run(row, case, n), expected(case, n))
    case, n = _at_the_bound(size, x_zero, 255)
    with pytest.raises(EngineError, match="cannot do this operator"):
        _plan(n, row.name, row.isa)
    n.args.x_zero = 128  # half of the largest sum
    np.testing.assert_array_equal(_run(row, case, n), expected(case, n))


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        (filtered(64, 64, size=(56, 56)), "qwinograd_avx2_4x4"),
        (filtered(16, 16, size=(28, 28)), "qwinograd_avx2_4x4"),
        (filtered(512, 48, size=(7, 7)), "qwinograd_avx2_4x4"),
        (filtered(200, 48, size=(14, 14), values="high"), "qwinograd_avx2_2x2"),  # sums are too large for 4x4
        (filtered(64, 64, size=(3, 3)), "qconv_avx2_pairs"),
        (filtered(64, 3, size=(14, 14)), "qconv_avx2_pairs"),
        (filtered(64, 64, size=(28, 28), stride=(2, 2)), "qconv_avx2_pairs"),
    ],
    ids=range(7),
)
def test_convolutions_go_to_the_kernel_that_is_faster(case, kernel):
    _check_choice(case, "avx2", kernel)
    _check_choice(case, "scalar", "qconv_scalar")


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        (filtered(64, 64, size=(56, 56)), "qwinograd_avx512vnni_4x4"),
        (filtered(512, 512, size=(7, 7), batch=16), "qwinograd_avx512vnni_4x4"),
        (filtered(512, 512, size=(7, 7)), "qconv_avx512vnni"),  # too few tiles for the weights' transform
        (filtered(16, 16, size=(56, 56)), "qconv_avx512vnni_narrow"),  # half of a panel
        (filtered(600, 48, size=(14, 14), values="high"), "qconv_avx512vnni"),  # sums are too large
        (filtered(64, 64, size=(28, 28), stride=(2, 2)), "qconv_avx512vnni"),
    ],
    ids=range(6),
)
def test_convolutions_go_to_winograd_where_products_of_bytes_are_no_faster(case, kernel):
    _check_choice(case, "avx512vnni", kernel)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        (filtered(64, 64, size=(56, 56)), "qwinograd_avxvnni_4x4"),
        (filtered(512, 512, size=(7, 7)), "qconv_avxvnni"),
        (filtered(64, 64, size=(28, 28), stride=(2, 2)), "qconv_avxvnni"),
        (filtered(64, 64, size=(28, 28), groups=64), "qdwconv_avxvnni"),
    ],
    ids=range(4),
)
def test_convolutions_of_avxvnni_go_to_its_kernels(case, kernel):
    _check_choice(case, "avxvnni", kernel)


def _check_choice(case: Case, isa: str, kernel: str) -> None:
    if isa not in native.supported_isas():
        pytest.skip(f"this CPU does not have {isa}")
    n = numbers(case, 0)
    if case.values == "random":
        n.weight[:] //= 4  # as those of trained layers are
    assert _plan(n, isa=isa).kernels == (kernel,)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    "change", [{"stride": (2, 2)}, {"stride": (1, 2)}, {"dilation": (2, 2)}, {"groups": 2}, {"kernel": (3, 2)}]
)
def test_other_convolutions_are_refused(row, change):
    case = replace(filtered(8, 8, size=(9, 9)), **change)
    with pytest.raises(EngineError, match="cannot do this operator"):
        _plan(numbers(case, 0), row.name, row.isa)
