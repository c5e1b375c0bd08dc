"""Every row of the layout family against NumPy, exactly."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool.errors import EngineError
from qtool.ir import DType, QParams
from qtool.native import Buffer, Kind, Op, Plan, abi

ROWS = kernel_rows("layout")
CORNERS = np.array(
    [0.0, -0.0, np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 127.5, 128.5, 0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9],
    np.float32,
)
COUNTS = [*range(11), 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 1000, 65535, 65536, 65537, 200001]
MATRICES = [
    *(
        (rows, cols)
        for rows in (1, 2, 3, 4, 7, 8, 9, 16, 17, 24, 64, 65)
        for cols in (1, 3, 8, 15, 16, 17, 49, 64, 130)
    ),
    (3, 224 * 224),
    (1000, 3),
    (512, 196),
]


def _values(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 60, count).astype(np.float32)
    places = rng.permutation(count)[: len(CORNERS)]
    x[places] = CORNERS[: len(places)]
    return x


def _params(signed: bool, zero: int, scale: float) -> tuple[QParams, dict[str, object]]:
    dtype = DType.INT8 if signed else DType.UINT8
    return QParams.per_tensor(scale, zero, dtype), {"zero_point": zero, "scale": scale, "storage": int(signed)}


PARAMS = [
    (False, 0, 1.0),
    (False, 255, 0.37),
    (False, 128, 1e-3),
    (False, 3, 1.0 / 3.0),
    (True, -128, 0.5),
    (True, 0, 0.0117),
    (True, 127, 2.0),
    (False, 5, 6e-39),
]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("signed", "zero", "scale"), PARAMS)
def test_quantize_and_dequantize_are_those_of_qparams(row, signed, zero, scale):
    qparams, fields = _params(signed, zero, scale)
    for count in COUNTS:
        x = _values(count, count)
        args = abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=count, **fields)
        q = run_kernel(row, Kind.QUANTIZE, args, [x], np.empty(count, qparams.dtype.numpy))
        np.testing.assert_array_equal(q, qparams.quantize(x))
        y = run_kernel(row, Kind.DEQUANTIZE, args, [q], np.empty(count, np.float32))
        np.testing.assert_array_equal(y, qparams.dequantize(q))


@pytest.mark.parametrize("row", ROWS)
def test_ties_and_int8_stored_shifted(row):
    """Half steps, and numbers close to them: the rounding of int8 is that of int8 also where it is stored + 128."""
    ties = (np.arange(-600, 600, dtype=np.float32) + np.float32(0.5))[:, None] * (1 + np.array([0, 1e-7, -1e-7, 3e-7]))
    for zero, scale in [(0, 1.0), (-7, 0.125), (100, 0.3), (-128, 7.7)]:
        x = (ties.ravel() * scale).astype(np.float32)
        qparams, fields = _params(True, zero, scale)
        expected = qparams.quantize(x)
        fields["storage"] = abi.Storage.INT8_SHIFTED
        args = abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=x.size, **fields)
        q = run_kernel(row, Kind.QUANTIZE, args, [x], np.empty(x.size, np.uint8))
        np.testing.assert_array_equal(q, expected.astype(np.int32) + 128)
        y = run_kernel(row, Kind.DEQUANTIZE, args, [q], np.empty(x.size, np.float32))
        np.testing.assert_array_equal(y, qparams.dequantize(expected))


@pytest.mark.parametrize("row", ROWS)
def test_dequantize_every_byte(row):
    q = np.arange(256, dtype=np.uint8)
    for signed, zero, scale in PARAMS:
        qparams, fields = _params(signed, zero, scale)
        args = abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=256, **fields)
        y = run_kernel(row, Kind.DEQUANTIZE, args, [q], np.empty(256, np.float32))
        np.testing.assert_array_equal(y, qparams.dequantize(q.view(qparams.dtype.numpy)))


@pytest.mark.parametrize("row", ROWS)
def test_nan_gives_the_smallest_value(row):
    x = np.full(100, np.nan, np.float32)
    for signed, smallest in ((False, 0), (True, -128)):
        args = abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=100, zero_point=7, scale=0.1, storage=int(signed))
        q = run_kernel(row, Kind.QUANTIZE, args, [x], np.empty(100, np.int8 if signed else np.uint8))
        assert (q == smallest).all()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("threads", [1, 2])
def test_quantize_with_a_transposition(row, threads):
    qparams, fields = _params(False, 11, 0.8)
    for outer, (rows, cols) in zip([1, 2, 3] * len(MATRICES), MATRICES, strict=False):
        x = _values(outer * rows * cols, rows + cols).reshape(outer, rows, cols)
        args = abi.make(abi.QuantizeArgs, outer=outer, rows=rows, cols=cols, transpose=1, **fields)
        like = np.empty((outer, cols, rows), np.uint8)
        q = run_kernel(row, Kind.QUANTIZE, args, [x], like, threads=threads)
        np.testing.assert_array_equal(q, qparams.quantize(x).transpose(0, 2, 1))
        back = abi.make(abi.QuantizeArgs, outer=outer, rows=cols, cols=rows, transpose=1, **fields)
        y = run_kernel(row, Kind.DEQUANTIZE, back, [q], np.empty_like(x), threads=threads)
        np.testing.assert_array_equal(y, qparams.dequantize(qparams.quantize(x)))


PERMUTATIONS = [
    ((), ()),
    ((5,), (0,)),
    ((2, 3), (1, 0)),
    ((2, 3, 224, 224), (0, 2, 3, 1)),
    ((1, 17, 9, 5), (0, 2, 3, 1)),
    ((2, 14, 14, 65), (0, 3, 1, 2)),
    ((4, 7, 3, 33), (0, 2, 1, 3)),
    ((3, 1, 5, 1, 7), (4, 1, 0, 3, 2)),
    ((2, 3, 4, 5, 6, 7), (5, 3, 1, 0, 2, 4)),
    ((2, 3, 4, 5, 6, 7), (3, 4, 5, 0, 1, 2)),
    ((6, 5, 4), (2, 1, 0)),
    ((300, 64, 4), (1, 0, 2)),
    ((2, 0, 4), (2, 1, 0)),
    ((70000, 2), (1, 0)),
    ((2, 70000), (1, 0)),
]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
def test_permute(row, dtype):
    rng = np.random.default_rng(1)
    for shape, order in PERMUTATIONS:
        x = rng.integers(0, 127, shape).astype(dtype)
        pad = (0,) * (6 - len(shape))
        args = abi.make(
            abi.PermuteArgs, rank=len(shape), element_bytes=x.itemsize, shape=shape + pad, order=order + pad
        )
        expected = x.transpose(order)
        got = run_kernel(row, Kind.PERMUTE, args, [x], np.empty(expected.shape, dtype), threads=2)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("row", ROWS)
def test_random_permutations(row):
    rng = np.random.default_rng(2)
    for _ in range(60):
        rank = int(rng.integers(1, 7))
        shape = tuple(int(n) for n in rng.choice([1, 2, 3, 5, 8, 17], rank))
        order = tuple(int(n) for n in rng.permutation(rank))
        x = rng.integers(0, 255, shape).astype(np.uint8)
        pad = (0,) * (6 - rank)
        args = abi.make(abi.PermuteArgs, rank=rank, element_bytes=1, shape=shape + pad, order=order + pad)
        expected = x.transpose(order)
        np.testing.assert_array_equal(
            run_kernel(row, Kind.PERMUTE, args, [x], np.empty(expected.shape, np.uint8)), expected
        )


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
@pytest.mark.parametrize("threads", [1, 2])
def test_move_rows(row, dtype, threads):
    """Rows here and there, neighbours that are moved together, the fill, and rows that stay as they are."""
    rng = np.random.default_rng(11)
    for outer, rows, width, count in [(1, 1, 1, 1), (3, 7, 5, 20), (2, 40, 3, 3000), (1, 900, 64, 2000), (2, 9, 0, 4)]:
        x = rng.integers(0, 127, (outer, rows, width)).astype(dtype)
        y = rng.integers(0, 127, (outer, count + 5, width)).astype(dtype)
        source = rng.integers(-1, rows, count).astype(np.int32)
        source[: min(count, rows) // 2] = np.arange(min(count, rows) // 2)
        target = np.sort(rng.permutation(count + 5)[:count]).astype(np.int32)
        fill = np.array([77], dtype)
        args = abi.make(
            abi.MoveArgs,
            outer=outer,
            count=count,
            in_rows=rows,
            out_rows=count + 5,
            row_bytes=width * fill.itemsize,
            source=source,
            target=target,
            fill=(*fill.tobytes(), *bytes(8 - fill.itemsize)),
            element_bytes=fill.itemsize,
        )
        expected = np.where((source < 0)[:, None], fill, x[:, source])
        got = run_kernel(row, Kind.MOVE, args, [x], y, threads=threads)
        np.testing.assert_array_equal(got[:, target], expected)


STRIDED = [(1, 1, 0, 0, 0), (49, 16, 48, 80, 32), (3000, 64, 64, 192, 64), (2, 100000, 100001, 100000, 5)]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("table", [None, np.random.default_rng(3).permutation(256).astype(np.uint8)])
def test_copy_of_strided_rows(row, table):
    rng = np.random.default_rng(4)
    for rows, width, in_stride, out_stride, begin in STRIDED:
        x = rng.integers(0, 255, rows * in_stride + width + begin).astype(np.uint8)
        like = np.empty(max(0, rows - 1) * out_stride + width, np.uint8)
        args = abi.make(
            abi.CopyArgs,
            rows=rows,
            row_bytes=width,
            in_stride=in_stride,
            out_stride=out_stride,
            in_offset=begin,
            lut=table,
        )
        got = run_kernel(row, Kind.COPY, args, [x], like, threads=2)
        for r in range(rows):
            source = x[begin + r * in_stride :][:width]
            expected = source if table is None else table[source]
            np.testing.assert_array_equal(got[r * out_stride :][:width], expected)


@pytest.mark.parametrize("row", ROWS)
def test_nothing_is_read_or_written_past_the_arrays_of_the_caller(row):
    """Arrays that end where a page ends; one byte more would be a segmentation fault."""
    for channels, pixels in [(3, 50), (64, 65), (1, 7), (17, 16)]:
        x = _page_end(channels * pixels * 4, np.float32).reshape(channels, pixels)
        x[:] = np.random.default_rng(5).normal(size=x.shape)
        q = _page_end(channels * pixels, np.uint8).reshape(pixels, channels)
        y = _page_end(channels * pixels * 4, np.float32).reshape(channels, pixels)
        fields = {"outer": 1, "transpose": 1, "zero_point": 9, "scale": 0.01}
        there = abi.make(abi.QuantizeArgs, rows=channels, cols=pixels, **fields)
        back = abi.make(abi.QuantizeArgs, rows=pixels, cols=channels, **fields)
        ops = [Op(Kind.QUANTIZE, (0,), 1, there, row.name), Op(Kind.DEQUANTIZE, (1,), 2, back, row.name)]
        buffers = [Buffer(x.nbytes), Buffer(q.nbytes), Buffer(y.nbytes)]
        Plan(ops, buffers, 0, isa=row.isa).run(x, q, y)
        qparams = QParams.per_tensor(0.01, 9, DType.UINT8)
        np.testing.assert_array_equal(q, qparams.quantize(x).T)
        np.testing.assert_array_equal(y, qparams.dequantize(q).T)


def _page_end(size: int, dtype: type) -> np.ndarray:
    """An array that ends at the end of its mapping, with a page after it that cannot be touched."""
    import ctypes

    page = mmap.PAGESIZE
    whole = -(-size // page) * page + page
    memory = mmap.mmap(-1, whole)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(address + whole - page), ctypes.c_size_t(page), 0) == 0
    count = size // np.dtype(dtype).itemsize
    return np.frombuffer(memory, dtype, count, whole - page - size)


def _moves(source: list[int], target: list[int]) -> abi.MoveArgs:
    indices = {"source": np.array(source, np.int32), "target": np.array(target, np.int32)}
    return abi.make(abi.MoveArgs, outer=1, count=2, in_rows=4, out_rows=4, row_bytes=1, element_bytes=1, **indices)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("kind", "args", "expected"),
    [
        (Kind.QUANTIZE, abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=1, scale=0.0), "scale"),
        (Kind.QUANTIZE, abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=1, scale=float("nan")), "scale"),
        (Kind.QUANTIZE, abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=1, scale=1.0, zero_point=256), "zero point"),
        (Kind.QUANTIZE, abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=1, scale=1.0, storage=3), "storage"),
        (Kind.QUANTIZE, abi.make(abi.QuantizeArgs, outer=1, rows=-1, cols=1, scale=1.0), "negative"),
        (Kind.QUANTIZE, abi.make(abi.QuantizeArgs, outer=2**40, rows=2**40, cols=2**40, scale=1.0), "too large"),
        (Kind.QUANTIZE, abi.make(abi.QuantizeArgs, outer=1, rows=1, cols=17, scale=1.0), "has 64 bytes, expected 68"),
        (Kind.COPY, abi.make(abi.CopyArgs, rows=1, row_bytes=-5), "negative"),
        (Kind.COPY, abi.make(abi.CopyArgs, rows=2, row_bytes=1, in_stride=-8, out_stride=1), "negative"),
        (Kind.COPY, abi.make(abi.CopyArgs, rows=1, row_bytes=1, in_offset=-1), "negative"),
        (Kind.COPY, abi.make(abi.CopyArgs, rows=2**62, row_bytes=2**62), "too large"),
        (Kind.COPY, abi.make(abi.CopyArgs, rows=2, row_bytes=1, in_stride=64, out_stride=1), "expected 65"),
        (Kind.COPY, abi.make(abi.CopyArgs, rows=3, row_bytes=4, in_stride=4, out_stride=3), "overlap"),
        (Kind.MOVE, abi.make(abi.MoveArgs, element_bytes=3), "1, 2, 4 or 8"),
        (Kind.MOVE, abi.make(abi.MoveArgs, element_bytes=4, row_bytes=6), "whole number"),
        (Kind.MOVE, abi.make(abi.MoveArgs, element_bytes=1, outer=1, count=-1), "out of range"),
        (Kind.MOVE, abi.make(abi.MoveArgs, element_bytes=1, outer=2**40, in_rows=2**40, row_bytes=9), "too large"),
        (Kind.MOVE, _moves([0, 4], [0, 1]), "the input is not there"),
        (Kind.MOVE, _moves([0, -2], [0, 1]), "the input is not there"),
        (Kind.MOVE, _moves([0, 1], [0, 4]), "the output is not there"),
        (Kind.MOVE, _moves([0, 1], [2, 2]), "written twice"),
        (Kind.PERMUTE, abi.make(abi.PermuteArgs, rank=7, element_bytes=1), "rank"),
        (Kind.PERMUTE, abi.make(abi.PermuteArgs, rank=1, element_bytes=3), "1, 2, 4 or 8"),
        (Kind.PERMUTE, abi.make(abi.PermuteArgs, rank=2, element_bytes=1, shape=(2, 2, 0, 0, 0, 0)), "permutation"),
        (Kind.PERMUTE, abi.make(abi.PermuteArgs, rank=1, element_bytes=8, shape=(2**62, 0, 0, 0, 0, 0)), "too large"),
    ],
)
def test_bad_descriptions(kind, args, expected):
    with pytest.raises(EngineError, match=expected):
        Plan([Op(kind, (0,), 1, args)], [Buffer(64), Buffer(64)], 0)
