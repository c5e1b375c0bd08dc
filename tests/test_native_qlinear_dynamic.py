"""Every row of the dynamic linear family against NumPy, bit for bit; tests/peers has PyTorch's operator."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool import native
from qtool.engine.dynamic import choose_qparams
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi

ROWS = kernel_rows("qlinear_dynamic")
INF = float("inf")
SIZES = [*range(1, 11), 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129]


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once to float32.

    The product of two float32 is exact in float64; the sum is rounded to odd there, after which the rounding to float32
    is the right one (Boldo and Melquiond, Emulation of a FMA and correctly rounded sums, 2008).
    """
    product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = product + c
    rest = total - product
    error = (product - (total - rest)) + (c - rest)
    even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.where(error > 0, INF, -INF)), total)
    with np.errstate(over="ignore"):
        return odd.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A dynamic linear layer: (rows, inputs) -> (rows, outputs)."""

    rows: int
    inputs: int
    outputs: int
    reduce_range: bool = False
    row_wise: bool = False
    bias: bool = True
    fused: bool = True
    clamp: tuple[float, float] = (-INF, INF)
    changes: dict[str, object] = field(default_factory=dict)

    def arrays(self, seed: int, scale: float = 1.0, shift: float = 0.0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            "x": (rng.normal(size=(self.rows, self.inputs)) * scale + shift).astype(np.float32),
            "weight": rng.integers(-128, 128, (self.outputs, self.inputs)).astype(np.int8),
            "w_scale": rng.uniform(1e-4, 0.1, self.outputs).astype(np.float32),
            "bias": rng.normal(size=self.outputs).astype(np.float32),
        }

    def args(self, arrays: dict[str, np.ndarray]) -> abi.LinearDynamicArgs:
        fields = {
            "rows": self.rows, "in_features": self.inputs, "out_features": self.outputs,
            "reduce_range": int(self.reduce_range), "row_wise": int(self.row_wise), "fused": int(self.fused),
            "out_min_f": self.clamp[0], "out_max_f": self.clamp[1], "weight": arrays["weight"],
            "w_scale": arrays["w_scale"], "bias": arrays["bias"] if self.bias else None,
        }  # fmt: skip
        return abi.make(abi.LinearDynamicArgs, **{**fields, **self.changes})

    def run(self, row: native.KernelRow, arrays: dict[str, np.ndarray], threads: int = 1) -> np.ndarray:
        like = np.empty((self.rows, self.outputs), np.float32)
        return run_kernel(row, Kind.QLINEAR_DYNAMIC, self.args(arrays), [arrays["x"]], like, threads=threads)


def _expected(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    x, w = arrays["x"], arrays["weight"].astype(np.float64)
    pieces = x if case.row_wise else x.reshape(1, -1)
    params = [choose_qparams(np.nanmin(p, initial=0), np.nanmax(p, initial=0), case.reduce_range) for p in pieces]
    scale = np.array([p[0] for p in params], np.float32)[:, None]
    zero = np.array([p[1] for p in params], np.float32)[:, None]
    q = np.fmin(np.fmax(np.rint(fused(x, np.float32(1) / scale, zero)), 0), 255)  # NaN gives 0
    acc = ((q.astype(np.float64) - zero) @ w.T).astype(np.int64)  # whole numbers below 2**53: exact
    multiplier, bias = scale * arrays["w_scale"], arrays["bias"] if case.bias else np.float32(0)
    floats = acc.astype(np.float32)
    y = fused(floats, multiplier, bias) if case.fused else floats * multiplier + bias
    return np.clip(y, *map(np.float32, case.clamp))


def _fit(case: Case, row: native.KernelRow) -> Case:
    """The case with what the row is for."""
    return replace(case, reduce_range=True) if row.name.endswith("_reduced") else case


def _check(case: Case, row: native.KernelRow, arrays: dict[str, np.ndarray], threads: int = 1) -> None:
    case = _fit(case, row)
    np.testing.assert_array_equal(case.run(row, arrays, threads), _expected(case, arrays), err_msg=str(case))


def _draw(seed: int, rows: int, inputs: int, outputs: int) -> tuple[Case, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    flags = (bool(bit) for bit in rng.integers(0, 2, 4))
    case = Case(rows, inputs, outputs, *flags, (-3.0, 20.0) if rng.integers(2) else (-INF, INF))
    return case, case.arrays(seed, 10 ** rng.uniform(-7, 4), float(rng.choice([0, 0, 3, -3])))


@pytest.mark.parametrize("row", ROWS)
def test_every_size(row):
    for i, size in enumerate(SIZES):
        for rows, inputs, outputs in ((1 + i % 13, 70, size), (size, 5 + i, 9), (1 + i % 7, size, 66 - i)):
            case, arrays = _draw(i, rows, inputs, outputs)
            _check(case, row, arrays)


@pytest.mark.parametrize("row", ROWS)
def test_random_layers(row):
    rng = np.random.default_rng(11)
    for seed in range(150):
        sizes = (int(n) for n in (rng.integers(1, 30), rng.integers(1, 300), rng.integers(1, 200)))
        case, arrays = _draw(1000 + seed, *sizes)
        _check(case, row, arrays)


@pytest.mark.parametrize("row", ROWS)
def test_blocks_of_tiles(row):
    """1, 2 and 4 tiles of 16 rows, and sums over 1, 2, 3, ... steps of 64."""
    for i, rows in enumerate((16, 17, 32, 33, 64, 65, 96, 97, 100, 193)):
        for j, inputs in enumerate((64, 65, 190, 256, 321, 700)):
            case, arrays = _draw(10 * i + j, rows, inputs, (16, 33, 64, 100, 128, 150, 200)[(i + j) % 7])
            _check(case, row, arrays)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 768, 768), (130, 300, 70), (700, 1000, 12), (2, 40000, 3)])
@pytest.mark.parametrize("row_wise", [False, True])
def test_many_chunks_and_threads(row, rows, inputs, outputs, row_wise):
    case = _fit(Case(rows, inputs, outputs, row_wise=row_wise), row)
    arrays = case.arrays(rows)
    expected = _expected(case, arrays)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(case.run(row, arrays, threads), expected)


@pytest.mark.parametrize("row", ROWS)
def test_corners_of_the_product(row):
    """The largest sums of either sign: kernels that saturate, or widen with the wrong sign, fail here."""
    for inputs in (1, 2, 3, 4, 5, 64, 1000):
        for x_value, other in ((1.0, 0.0), (-1.0, 0.0), (1.0, -1.0)):
            case = Case(7, inputs, 20)
            arrays = case.arrays(0)
            arrays["x"][:] = x_value
            arrays["x"][1::2] = other
            for weight in (127, -128, np.arange(inputs) % 2 * 255 - 128):
                arrays["weight"][:] = weight
                _check(case, row, arrays)


@pytest.mark.parametrize("row", ROWS)
def test_ties_round_as_the_original_does(row):
    """Halves of a step: with the zero point added before the rounding an odd one turns the direction."""
    steps = 127.0 if _fit(Case(1, 1, 1), row).reduce_range else 255.0
    for low in (-3.0, -4.0, 0.0, -steps):
        x = np.arange(low, low + steps + 0.25, 0.5, dtype=np.float32)[None]
        case = _fit(Case(1, x.size, 40, bias=False), row)
        arrays = case.arrays(1) | {"x": x}
        assert choose_qparams(x.min(), x.max(), case.reduce_range) == (1.0, -low)
        _check(case, row, arrays)


@pytest.mark.parametrize("row", ROWS)
def test_the_largest_number_of_a_reduced_range(row):
    """A zero point of half a step is rounded, and the end of the range with it: to 128."""
    for low in np.arange(-126.5, 0, 1.0):
        case = Case(2, 8, 16, reduce_range=True, bias=False)
        arrays = case.arrays(3)
        arrays["x"][:] = low + 127
        arrays["x"][:, 0] = low
        arrays["weight"][:] = np.array([-128, 127])[np.arange(16) % 2][:, None]
        _check(case, row, arrays)


@pytest.mark.parametrize("row", ROWS)
def test_ranges_that_are_empty_or_tiny(row):
    for reduce_range in (False, True):
        for values in ((0.0,), (1e-40, 0.0), (1e-7, -1e-6), (-1e-9, 0), (5e-3, 4e-3), (3e38, -3e38), (-7.0, -6.5)):
            case = Case(3, 11, 18, reduce_range)
            arrays = case.arrays(2)
            arrays["x"][:] = np.resize(np.float32(values), (3, 11))
            _check(case, row, arrays)


@pytest.mark.parametrize("row", ROWS)
def test_no_rows(row):
    case = _fit(Case(0, 5, 6), row)
    assert case.run(row, case.arrays(0)).shape == (0, 6)


@pytest.mark.usefixtures("need_native")
def test_a_row_for_reduced_ranges_refuses_others():
    for row in (row.values[0] for row in ROWS if "_reduced" in str(row.values[0])):
        with pytest.raises(EngineError, match="cannot do this operator"):
            Case(1, 4, 4).run(row, Case(1, 4, 4).arrays(0))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("row_wise", [False, True])
def test_nan_has_no_part_in_the_range(row, row_wise):
    for inputs in (1, 5, 16, 40, 80, 130):
        case = Case(3, inputs, 9, row_wise=row_wise)
        arrays = case.arrays(5)
        arrays["x"][0, inputs // 2] = arrays["x"][2, -1] = np.nan
        _check(case, row, arrays)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": -1}, "rows"),
        ({"in_features": 0}, "features"),
        ({"out_features": -3}, "features"),
        ({"weight": None}, "weight"),
        ({"w_scale": None}, "scale"),
        ({"rows": 2**60}, "too large"),
        ({"rows": 5}, "input 0 has"),
        ({"reduce_range": 0, "rows": 2**40, "in_features": 1, "out_features": 1}, "input 0 has"),
    ],
)
def test_bad_descriptions_are_refused(changes, message):
    case = Case(4, 6, 5, changes=changes)
    with pytest.raises(EngineError, match=message):
        Plan([Op(Kind.QLINEAR_DYNAMIC, (0,), 1, case.args(case.arrays(0)))], [Buffer(4 * 24), Buffer(4 * 20)], 0)
