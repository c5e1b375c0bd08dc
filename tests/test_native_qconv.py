"""Every row of the quantized convolution families against NumPy, exactly."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import kernel_rows, run_kernel
from qconv_cases import F32, Case, Numbers, depthwise, expected, linear, numbers

from qtool import native
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi

ROWS = kernel_rows("qconv") + kernel_rows("qtileconv")
DEPTHWISE_ROWS = kernel_rows("qdwconv")


def _run(row: Any, case: Case, n: Numbers, threads: int = 1) -> np.ndarray:
    inputs = [n.x] if n.residual is None else [n.x, n.residual]
    return run_kernel(row, Kind.QCONV, n.args, inputs, np.empty(case.out_shape, np.uint8), threads=threads)


def check(row: Any, case: Case, threads: int = 1) -> None:
    n = numbers(case, zlib.crc32(repr(case).encode()))
    np.testing.assert_array_equal(_run(row, case, n, threads), expected(case, n), err_msg=repr(case))


SMALL = [linear(m, k, o) for m in range(1, 11) for k, o in ((m, 11 - m), (11 - m, m), (4 * m, 16 * m - 1), (3, 7))]
TAILS = [linear(m, 37, o) for m in (1, 5, 6, 7, 13) for o in (1, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 100, 129)]
WIDENED = [  # tiles of 6 pixels, rows of every rest of 16 bytes, long rows, more than one chunk
    *(linear(m, k, o) for m in (6, 11, 193) for k in (4, 8, 12, 20, 24, 28, 256, 260) for o in (8, 24)),
    *(linear(m, 3000, 40) for m in (49, 100)),
    *(Case(size=(13, 9), channels=(c, 40), kernel=(3, 3), pad=(1, 1, 1, 1)) for c in (20, 24, 28, 32)),
    *(Case(size=(9, 9), channels=(3 * c, 60), kernel=(3, 3), pad=(1, 1, 1, 1), groups=3) for c in (4, 8, 12, 20)),
]
AFTER = [  # a sum and a table that follow several panels, of some or of all channels
    Case(size=(20, 21), channels=(24, o), kernel=k, pad=(k[0] // 2,) * 4, residual=residual, lut=True, groups=g)
    for o, g in ((150, 1), (64, 1), (40, 2))
    for k in ((1, 1), (3, 3))
    for residual in ("float", "fixed")
]
DEEP = [
    linear(1, 4096, 70),
    linear(7, 2051, 65),
    linear(3, 30000, 5),
    linear(200, 1, 1),
    linear(191, 4, 3),
    linear(193, 64, 64),
    linear(1000, 8, 24),
]
CONVOLUTIONS = [
    Case(size=(9, 11), channels=(64, 64), kernel=(3, 3), pad=(1, 1, 1, 1)),
    Case(size=(14, 14), channels=(20, 70), kernel=(3, 3), pad=(1, 1, 1, 1), stride=(2, 2), batch=2),
    Case(size=(7, 5), channels=(18, 9), kernel=(3, 3), pad=(2, 0, 0, 1)),
    Case(size=(30, 28), channels=(3, 64), kernel=(7, 7), pad=(3, 3, 3, 3), stride=(2, 2)),
    Case(size=(12, 3), channels=(3, 10), kernel=(5, 7), pad=(2, 2, 6, 5)),
    Case(size=(12, 1), channels=(1, 10), kernel=(3, 3), pad=(1, 1, 1, 1), batch=3),
    Case(size=(28, 28), channels=(1, 6), kernel=(5, 5)),
    Case(size=(10, 9), channels=(8, 16), kernel=(2, 2), stride=(3, 1), pad=(0, 1, 1, 0)),
    Case(size=(11, 12), channels=(24, 5), kernel=(3, 3), dilation=(2, 3), pad=(2, 2, 3, 3)),
    Case(size=(11, 12), channels=(4, 5), kernel=(3, 2), dilation=(1, 3), pad=(1, 0, 3, 0)),
    Case(size=(6, 6), channels=(12, 8), kernel=(3, 3), pad=(1, 1, 1, 1), stride=(1, 2), dilation=(2, 1)),
    Case(size=(8, 8), channels=(32, 48), kernel=(1, 1), stride=(2, 2)),
    Case(size=(8, 8), channels=(16, 16), kernel=(1, 1), pad=(1, 1, 1, 1)),
    Case(size=(1, 40), channels=(10, 20), kernel=(1, 5), pad=(0, 0, 2, 2), batch=2),
    Case(size=(1, 40), channels=(40, 20), kernel=(1, 3), stride=(1, 2), dilation=(1, 4), pad=(0, 0, 8, 8)),
    Case(size=(3, 3), channels=(5, 5), kernel=(3, 3), pad=(5, 5, 5, 5)),
]
BORDERS = [  # where whole regions of the output see the same taps in the padding
    *(Case(batch=b, size=(7, 7), channels=(20, 70), kernel=(3, 3), pad=(1, 1, 1, 1)) for b in (1, 2, 9)),
    *(Case(batch=b, size=(13, 16), channels=(17, 5), kernel=(5, 5), pad=(2, 2, 2, 2)) for b in (1, 7)),
    *(Case(batch=b, size=(15, 15), channels=(20, 9), kernel=(3, 3), pad=(1, 1, 1, 1), stride=(2, 2)) for b in (1, 8)),
    Case(size=(20, 20), channels=(4, 8), kernel=(7, 7), pad=(3, 3, 3, 3), stride=(2, 2), batch=3),
    Case(size=(9, 20), channels=(20, 8), kernel=(3, 3), pad=(4, 4, 4, 4), dilation=(4, 4), batch=2),
    Case(size=(1, 60), channels=(24, 8), kernel=(1, 9), pad=(0, 0, 4, 4), batch=4),
    Case(size=(40, 1), channels=(24, 8), kernel=(9, 1), pad=(8, 8, 0, 0)),
    Case(size=(6, 6), channels=(24, 8), kernel=(6, 6), pad=(5, 5, 5, 5), batch=2),
    Case(size=(4, 4), channels=(24, 8), kernel=(2, 2), pad=(9, 9, 9, 9), stride=(2, 3)),
    Case(size=(30, 3), channels=(24, 8), kernel=(1, 1), pad=(70, 70, 1, 0)),
    Case(size=(5, 5), channels=(24, 8), kernel=(3, 3), pad=(90, 90, 90, 90)),
    Case(size=(32, 32), channels=(16, 8), kernel=(3, 3), pad=(1, 0, 0, 1), residual="float", lut=True),
]
GROUPED = [
    Case(size=(6, 7), channels=(8, 8), groups=2, kernel=(3, 3), pad=(1, 1, 1, 1)),
    Case(size=(6, 7), channels=(36, 150), groups=2, kernel=(3, 3), pad=(1, 1, 1, 1), batch=2),
    Case(size=(5, 5), channels=(10, 15), groups=5, kernel=(3, 3), pad=(1, 1, 1, 1), stride=(2, 2)),
    Case(size=(5, 5), channels=(9, 27), groups=9, kernel=(3, 3), pad=(1, 1, 1, 1)),
    Case(size=(5, 5), channels=(6, 6), groups=6, kernel=(3, 3), pad=(1, 1, 1, 1)),
    Case(size=(1, 20), channels=(6, 12), groups=3, kernel=(1, 4)),
]
TILES = [  # blocks of 1, 2 and 4 row tiles; one step of 64 and more; the ways to the rows of a tile
    *(
        linear(m, 64 * k, o)
        for m, o in ((16, 70), (17, 40), (31, 33), (49, 64), (64, 16), (65, 100))
        for k in range(1, 6)
    ),
    *(linear(m, 64 * k, 48) for m in (9, 15, 200) for k in (2, 7, 12)),
    linear(3000, 64, 20),
    linear(300, 1024, 600),
    linear(64, 130, 30),
    *(Case(batch=b, size=(7, 7), channels=(64, 40), kernel=(3, 3), pad=(1, 1, 1, 1)) for b in (1, 3)),
    Case(size=(7, 60), channels=(64, 33), kernel=(3, 3), pad=(1, 1, 1, 1), batch=2),
    Case(size=(60, 5), channels=(128, 16), kernel=(3, 3), pad=(1, 1, 1, 1)),
    Case(size=(9, 70), channels=(64, 16), kernel=(3, 5), pad=(0, 2, 1, 3)),
    Case(size=(9, 70), channels=(64, 16), kernel=(3, 2), dilation=(2, 3), pad=(2, 1, 0, 3), batch=2),
    Case(size=(30, 30), channels=(64, 24), kernel=(1, 1), pad=(1, 1, 0, 2)),
    Case(size=(14, 14), channels=(64, 24), kernel=(1, 1), stride=(2, 2)),
    Case(size=(15, 14), channels=(64, 24), kernel=(3, 3), stride=(2, 1), pad=(1, 1, 1, 1), batch=2),
    Case(size=(10, 10), channels=(128, 96), groups=2),
    Case(size=(10, 10), channels=(256, 96), kernel=(3, 3), pad=(1, 1, 1, 1), groups=2),
]
DEPTHWISE = [
    *(depthwise(c, size=(6, 7), kernel=(3, 3), pad=(1, 1, 1, 1)) for c in (*range(2, 11), 15, 16, 17, 31, 32, 33)),
    *(depthwise(c, size=(5, 9), kernel=(3, 3), pad=(1, 1, 1, 1), stride=(2, 2)) for c in (2, 32, 48, 63, 64, 65, 96)),
    *(depthwise(c, size=(9, 8), kernel=(5, 5), pad=(2, 2, 2, 2)) for c in (3, 24, 40, 72, 130)),
    depthwise(24, size=(14, 14), kernel=(5, 5), pad=(2, 2, 2, 2), stride=(2, 2), batch=2),
    depthwise(64, size=(14, 15), kernel=(3, 3), pad=(1, 1, 1, 1), stride=(1, 2), batch=3),
    depthwise(20, size=(12, 15), kernel=(3, 3), pad=(0, 1, 2, 0), stride=(2, 1)),
    depthwise(20, size=(12, 15), kernel=(3, 3), pad=(0, 0, 0, 0), stride=(3, 3)),
    depthwise(70, size=(12, 15), kernel=(3, 3), pad=(2, 2, 2, 2), dilation=(2, 2)),
    depthwise(70, size=(12, 15), kernel=(3, 3), pad=(2, 2, 1, 1), dilation=(2, 1)),
    depthwise(8, size=(1, 50), kernel=(1, 9), pad=(0, 0, 4, 4)),
    depthwise(33, size=(1, 50), kernel=(1, 3), pad=(0, 0, 1, 1), stride=(1, 2)),
    depthwise(7, size=(8, 8), kernel=(7, 7), pad=(3, 3, 3, 3)),
    depthwise(7, size=(8, 8), kernel=(2, 4), pad=(1, 0, 2, 1)),
    depthwise(5, size=(4, 4), kernel=(1, 1)),
    depthwise(5, size=(1, 1), kernel=(3, 3), pad=(1, 1, 1, 1)),
    depthwise(67, size=(2, 1), kernel=(3, 3), pad=(4, 4, 4, 4)),
    depthwise(64, size=(60, 40), kernel=(3, 3), pad=(1, 1, 1, 1)),
]
NARROW = [  # narrow pictures, and more columns of padding than one pixel sees
    depthwise(20, size=(4, width), kernel=(3, 3), pad=(1, 1, left, right), stride=(1, stride))
    for width in range(1, 8)
    for left, right in ((1, 1), (0, 2), (3, 0), (5, 4))
    for stride in (1, 2)
]
EPILOGUES = [
    *({"bias": bias} for bias in ("float", "int", "both", "none")),
    *({"residual": residual} for residual in ("sum", "float", "fixed")),
    {"lut": True},
    {"lut": True, "residual": "fixed", "bias": "int"},
    {"lut": True, "residual": "float"},
    {"bounds": (3, 200)},
    {"bounds": (77, 77), "residual": "sum"},
    {"bounds": (255, 255)},
]
SHAPES = [
    linear(9, 33, 50),
    linear(37, 64, 50),
    Case(size=(9, 17), channels=(64, 20), kernel=(3, 3), pad=(1, 1, 1, 1), batch=2),
    Case(size=(9, 9), channels=(16, 80), kernel=(3, 3), pad=(1, 1, 1, 1), stride=(2, 2)),
]
VALUES = ["low", "high", "mixed"]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    "cases", [SMALL, TAILS, WIDENED, AFTER, DEEP, CONVOLUTIONS, BORDERS, GROUPED, TILES], ids=range(9)
)
def test_convolution(row, cases):
    for case in cases:
        check(row, case)


@pytest.mark.parametrize("row", DEPTHWISE_ROWS)
def test_depthwise(row):
    for case in (*DEPTHWISE, *NARROW):
        check(row, case)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=repr)
def test_epilogue(row, epilogue):
    for case in SHAPES:
        check(row, replace(case, **epilogue))


@pytest.mark.parametrize("row", DEPTHWISE_ROWS)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=repr)
def test_depthwise_epilogue(row, epilogue):
    for channels, kernel in ((50, (3, 3)), (100, (3, 3)), (11, (5, 5))):
        check(row, depthwise(channels, size=(5, 6), kernel=kernel, pad=(1, 1, 1, 1), **epilogue))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("values", VALUES)
def test_extreme_values(row, values):
    """Where 16-bit sums of products would saturate."""
    for case in (linear(5, 333, 40), linear(8, 20000, 3), CONVOLUTIONS[0], CONVOLUTIONS[3]):
        check(row, replace(case, values=values))


PAIRS = [(first, second) for first in (-128, -127, -1, 0, 1, 127) for second in range(-128, 128)]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("byte", [255, 254, 0])
def test_pairs_of_weights_at_and_beyond_what_16_bits_hold(row, byte):
    """A channel for each pair, at either place of four bytes and in both orders; a sum that is off by one shows."""
    case = linear(5, 15, len(PAIRS), bias="int")
    for place, alike in ((0, False), (2, False), (6, True), (12, True)):
        n = numbers(case, place)
        n.x[:] = byte
        n.multiplier[:] = 1
        weight = n.weight.reshape(len(PAIRS), 15)
        weight[:] = np.resize(np.array(PAIRS).T, (15, len(PAIRS))).T if alike else 0
        weight[:, place : place + 2] = PAIRS
        for _ in range(2):
            n.bias_i32[:] = (
                np.arange(len(PAIRS)) % 50 - 25 - (byte - n.args.x_zero) * weight.sum(axis=1, dtype=np.int32)
            )
            np.testing.assert_array_equal(_run(row, case, n), expected(case, n))
            weight[:] = weight[:, ::-1].copy()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_few_pairs_of_weights_are_too_large(row, share):
    """Some steps of some taps and panels, with lines that see fewer taps."""
    for case in (*CONVOLUTIONS[:12], Case(size=(7, 7), channels=(38, 70), kernel=(3, 3), pad=(1, 1, 1, 1))):
        n = numbers(replace(case, values="mixed"), 8)
        small = np.random.default_rng(8).random(n.weight.shape) >= share
        n.weight[small] //= 4
        np.testing.assert_array_equal(_run(row, case, n), expected(case, n))


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("weight", "kernel"), [(64, "qconv_avx2_pairs"), (65, "qconv_avx2"), (-64, "qconv_avx2_pairs")]
)
def test_avx2_multiplies_pairs_of_bytes_where_weights_allow_it(weight, kernel):
    if "avx2" not in native.supported_isas():
        pytest.skip("this CPU does not have avx2")
    n = numbers(linear(2, 64, 40), 0)
    n.weight[:] = weight
    op = Op(Kind.QCONV, (0,), 1, n.args)
    buffers = [Buffer(1 << 16, i << 16) for i in range(2)]
    assert Plan([op], buffers, 2 << 16, isa="avx2").kernels == (kernel,)


@pytest.mark.parametrize("row", DEPTHWISE_ROWS)
@pytest.mark.parametrize("values", VALUES)
def test_depthwise_extreme_values(row, values):
    for case in DEPTHWISE[:40:3]:
        check(row, replace(case, values=values))


@pytest.mark.parametrize("row", ROWS + DEPTHWISE_ROWS)
@pytest.mark.parametrize("factor", [1e20, -1e20, 0.0, 1e-30])
def test_extreme_multipliers(row, factor):
    """Results far outside of an int32 go to the bounds; a multiplier may also be negative."""
    case = depthwise(37, size=(4, 4), kernel=(3, 3), pad=(1, 1, 1, 1)) if "dw" in row.name else linear(7, 20, 37)
    for residual in ("none", "sum"):
        n = numbers(replace(case, residual=residual), 5)
        n.multiplier[:] *= F32(factor)
        wanted = expected(replace(case, residual=residual), n)
        np.testing.assert_array_equal(_run(row, case, n), wanted)


@pytest.mark.parametrize("row", ROWS + DEPTHWISE_ROWS)
def test_ties_go_to_the_even_neighbour(row):
    """Multipliers of a half: every other result lies between two bytes."""
    more = {"bias": "none", "values": "random"}
    case = depthwise(37, size=(9, 9), kernel=(1, 1), **more) if "dw" in row.name else linear(80, 1, 37, **more)
    n = numbers(case, 6)
    n.multiplier[:] = 0.5
    n.weight[:] = np.where(n.weight & 1, 1, -1)
    np.testing.assert_array_equal(_run(row, case, n), expected(case, n))


@pytest.mark.parametrize("row", ROWS + DEPTHWISE_ROWS)
def test_every_number_of_threads_gives_the_same_bits(row):
    shape = {"size": (23, 31), "kernel": (3, 3), "pad": (1, 1, 1, 1), "residual": "float", "lut": True}
    cases = [depthwise(70, **shape)] if "dw" in row.name else [Case(channels=(c, 150), **shape) for c in (6, 64)]
    for case in cases:
        n = numbers(case, 7)
        wanted = expected(case, n)
        for threads in (1, 2, 3, 5):
            np.testing.assert_array_equal(_run(row, case, n, threads), wanted)


@st.composite
def convolutions(draw: Any) -> Case:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    size = tuple(draw(st.integers(d * (k - 1) + 1, 12)) for k, d in zip(kernel, dilation, strict=True))
    return Case(
        batch=draw(st.integers(1, 3)),
        size=size,
        channels=(groups * draw(st.integers(1, 40) | st.just(64)), groups * draw(st.integers(1, 80))),
        kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        pad=draw(st.tuples(*[st.integers(0, 3)] * 4)),
        dilation=dilation,
        groups=groups,
        values=draw(st.sampled_from(["random", "mixed"])),
        bias=draw(st.sampled_from(["float", "int"])),
        residual=draw(st.sampled_from(["none", "sum", "float", "fixed"])),
        lut=draw(st.booleans()),
    )


@pytest.mark.parametrize("row", ROWS)
@settings(max_examples=60)
@given(case=convolutions(), threads=st.sampled_from([1, 2]))
def test_any_convolution(row, case, threads):
    check(row, case, threads)


@pytest.mark.parametrize("row", DEPTHWISE_ROWS)
@settings(max_examples=60)
@given(case=convolutions(), channels=st.integers(2, 140), threads=st.sampled_from([1, 2]))
def test_any_depthwise_convolution(row, case, channels, threads):
    check(row, replace(case, channels=(channels, channels), groups=channels), threads)


def _plan(args: abi.ConvArgs, inputs: int = 1, kernel: str | None = None) -> Plan:
    op = Op(Kind.QCONV, tuple(range(inputs)), inputs, args, kernel)
    return Plan([op], [Buffer(1 << 16, i << 16) for i in range(inputs + 1)], (inputs + 1) << 16)


@pytest.mark.usefixtures("need_native")
def test_depthwise_convolutions_go_to_their_own_family():
    assert _plan(numbers(depthwise(8, size=(4, 4)), 0).args).kernels[0].startswith("qdwconv_")
    assert _plan(numbers(Case(channels=(8, 16), groups=8), 0).args).kernels[0].startswith("qconv_")
    assert _plan(numbers(linear(1, 1, 1), 0).args).kernels[0].startswith("qconv_")


@pytest.mark.usefixtures("need_native")
def test_an_empty_batch_runs():
    _plan(numbers(linear(0, 5, 5), 0).args).run()
    _plan(numbers(depthwise(5, batch=0, size=(4, 4)), 0).args).run()


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "1..2^28"),
        ({"groups": 3}, "groups must divide"),
        ({"stride_width": 0}, "1..2^28"),
        ({"kernel_height": -1}, "1..2^28"),
        ({"batch": -1}, "negative"),
        ({"pad_left": 1 << 29}, "padding"),
        ({"weight": None}, "missing"),
        ({"multiplier": None}, "missing"),
        ({"x_zero": 256}, "zero point"),
        ({"out_zero": -1}, "zero point"),
        ({"out_min": 9, "out_max": 8}, "bounds"),
        ({"out_max": 256}, "bounds"),
        ({"residual": 3}, "residual"),
        ({"residual": 2, "add": None}, "residual is not sound"),
        ({"residual": 1, "res_zero": 300}, "zero point"),
        ({"residual": 1, "res_multiplier": float("inf")}, "multiplier"),
        ({"residual": 1}, "got 1 inputs, expected 2"),
        ({"batch": 1 << 20}, "input 0 has 65536 bytes"),
    ],
)
def test_unsound_descriptions_are_refused(change, message):
    args = numbers(linear(2, 8, 8), 0).args
    for name, value in change.items():
        setattr(args, name, value)
    with pytest.raises(EngineError, match=message.replace("^", r"\^")):
        _plan(args)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e35])
def test_unsound_multipliers_are_refused(value):
    n = numbers(linear(2, 8, 8), 0)
    n.multiplier[3] = value
    with pytest.raises(EngineError, match="not finite, or too large"):
        _plan(n.args)


@pytest.mark.usefixtures("need_native")
def test_a_depthwise_kernel_refuses_other_convolutions():
    with pytest.raises(EngineError, match="not depthwise"):
        _plan(numbers(linear(2, 8, 8), 0).args, kernel="qdwconv_scalar")
