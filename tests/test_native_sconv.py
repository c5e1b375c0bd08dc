"""Every row of the float convolution families against a float64 sum, within the bound of a float32 one.

A chain of k products and sums, a bias and a residual have an error of at most (k + 3) u / (1 - (k + 3) u) times the
sum of the absolute values (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; u = 2**-24), and a
clamp makes no error larger. Where all values are small integers every sum is exact, and so must the result be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool import native
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi

ROWS = kernel_rows("sconv")
DEPTHWISE = kernel_rows("sdwconv")
INF = float("inf")


@dataclass(frozen=True)
class Case:
    """A convolution over NHWC; ``pads`` are top, left, bottom, right."""

    batch: int = 1
    size: tuple[int, int] = (1, 1)
    channels: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    residual: bool = False
    clamp: tuple[float, float] = (-INF, INF)

    @property
    def out_size(self) -> tuple[int, int]:
        padded = [self.size[i] + self.pads[i] + self.pads[i + 2] for i in (0, 1)]
        spans = [(self.kernel[i] - 1) * self.dilation[i] + 1 for i in (0, 1)]
        return tuple((padded[i] - spans[i]) // self.stride[i] + 1 for i in (0, 1))

    def arrays(self, seed: int, integers: bool) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        draw = (lambda *s: rng.integers(-3, 4, s)) if integers else (lambda *s: rng.normal(size=s))
        x = draw(self.batch, *self.size, self.channels[0])
        w = draw(self.channels[1], *self.kernel, self.channels[0] // self.groups)
        found = {"x": x, "w": w, "bias": draw(self.channels[1])}
        found["residual"] = draw(self.batch, *self.out_size, self.channels[1])
        return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}

    def args(self, arrays: dict[str, np.ndarray], **changes: object) -> abi.ConvArgs:
        fields = {
            "batch": self.batch, "in_height": self.size[0], "in_width": self.size[1], "in_channels": self.channels[0],
            "out_height": self.out_size[0], "out_width": self.out_size[1], "out_channels": self.channels[1],
            "kernel_height": self.kernel[0], "kernel_width": self.kernel[1],
            "stride_height": self.stride[0], "stride_width": self.stride[1],
            "pad_top": self.pads[0], "pad_left": self.pads[1],
            "dilation_height": self.dilation[0], "dilation_width": self.dilation[1], "groups": self.groups,
            "residual": int(self.residual), "out_min_f": self.clamp[0], "out_max_f": self.clamp[1],
            "weight": arrays["w"], "bias_f32": arrays["bias"] if self.bias else None,
        }  # fmt: skip
        return abi.make(abi.ConvArgs, **{**fields, **changes})

    def run(self, row: native.KernelRow, arrays: dict[str, np.ndarray], threads: int = 1) -> np.ndarray:
        inputs = [arrays["x"]] + ([arrays["residual"]] if self.residual else [])
        like = np.empty_like(arrays["residual"])
        return run_kernel(row, Kind.SCONV, self.args(arrays), inputs, like, threads=threads)


def _windows(case: Case, x: np.ndarray) -> np.ndarray:
    """[N, OH, OW, KH, KW, C] of the padded input."""
    top, left, bottom, right = case.pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows = np.arange(case.out_size[0])[:, None] * case.stride[0] + np.arange(case.kernel[0]) * case.dilation[0]
    columns = np.arange(case.out_size[1])[:, None] * case.stride[1] + np.arange(case.kernel[1]) * case.dilation[1]
    return padded[:, rows[:, None, :, None], columns[None, :, None, :]]


def _convolve(case: Case, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The sums of products in float64, [N, OH, OW, O]."""
    windows = _windows(case, x.astype(np.float64))
    shape = windows.shape[:3]
    inputs, outputs = case.channels[0] // case.groups, case.channels[1] // case.groups
    a = windows.reshape(-1, case.kernel[0] * case.kernel[1], case.groups, inputs)
    a = a.transpose(2, 0, 1, 3).reshape(case.groups, len(a), w[0].size)
    b = w.astype(np.float64).reshape(case.groups, outputs, w[0].size)
    return (a @ b.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(*shape, case.channels[1])


def _expected(case: Case, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The result, and how far from it a float32 sum may be."""
    x, w = arrays["x"], arrays["w"]
    y, size = _convolve(case, x, w), _convolve(case, abs(x), abs(w))
    for name, used in (("bias", case.bias), ("residual", case.residual)):
        if used:
            y, size = y + arrays[name], size + abs(arrays[name])
    steps = w[0].size + 3
    unit = 2.0**-24
    bound = size * (steps * unit / (1 - steps * unit))
    return np.clip(y, *case.clamp), bound


def _check(case: Case, row: native.KernelRow, seed: int = 0) -> None:
    arrays = case.arrays(seed, integers=True)
    expected, _ = _expected(case, arrays)
    np.testing.assert_array_equal(case.run(row, arrays), expected, err_msg=str(case))
    arrays = case.arrays(seed, integers=False)
    expected, bound = _expected(case, arrays)
    got = case.run(row, arrays, threads=2)
    worst = (abs(got - expected) - bound).max(initial=-1)
    assert worst <= 0, f"{case}: {worst} over the bound"


SQUARES = [
    Case(2, (9, 7), (5, 6), (3, 3), pads=(1, 1, 1, 1)),
    Case(1, (15, 15), (3, 64), (7, 7), (2, 2), (3, 3, 3, 3), clamp=(0, INF)),  # a stem: few channels
    Case(2, (11, 23), (3, 32), (3, 3), (2, 2), (0, 0, 1, 1), clamp=(0, 6)),
    Case(1, (3, 2), (4, 9), (5, 5), pads=(4, 4, 4, 4)),  # some windows lie in the padding alone
    Case(1, (4, 40), (16, 7), (1, 5), pads=(0, 2, 0, 2)),
    Case(1, (4, 40), (17, 7), (1, 5), pads=(0, 2, 0, 2)),
    Case(3, (14, 14), (32, 65), (3, 3), pads=(1, 1, 1, 1), residual=True, clamp=(0, INF)),
    Case(1, (13, 9), (20, 33), (3, 2), (3, 2), (0, 2, 1, 0), (2, 3)),
    Case(1, (13, 9), (20, 33), (3, 2), (1, 1), (5, 2, 0, 4), (2, 1), bias=False),
    Case(1, (8, 8), (33, 10), (1, 1), (2, 2)),
    Case(2, (8, 8), (33, 10), (1, 1), pads=(1, 0, 2, 3)),
    Case(2, (7, 7), (24, 36), (3, 3), pads=(1, 1, 1, 1), groups=3, residual=True),
    Case(1, (5, 6), (8, 16), (2, 2), groups=8),
    Case(1, (6, 5), (140, 130), (1, 1), groups=2, bias=False),
    Case(1, (6, 6), (9, 9), (3, 3), pads=(1, 1, 1, 1), groups=9, residual=True, clamp=(-1, 1)),
    Case(2, (1, 100), (1, 6), (1, 9), (1, 4), (0, 4, 0, 4)),  # 1-d
    Case(2, (1, 37), (40, 70), (1, 3), (1, 2), (0, 2, 0, 0), (1, 4)),
    Case(0, (5, 5), (3, 4), (3, 3)),
    Case(1, (5, 0), (3, 4), (1, 1)),
    Case(1, (20, 50), (12, 20), (1, 1)),  # many chunks
    Case(1, (40, 41), (6, 3), (3, 3), pads=(1, 1, 1, 1)),
]
DEEP = [
    Case(1, (1, 13), (9000, 3)),  # more than one block of the sum for every tile
    Case(1, (3, 3), (1500, 70), (3, 3), pads=(1, 1, 1, 1), residual=True, clamp=(-50, 50)),  # a tap in parts
    Case(1, (2, 5), (400, 17), (5, 5), pads=(2, 2, 2, 2)),  # some taps a block
    Case(1, (2, 4), (4600, 34), (2, 2), groups=2),
]


@pytest.mark.parametrize("row", ROWS)
def test_convolutions(row):
    for case in SQUARES:
        _check(case, row)


@pytest.mark.parametrize("row", ROWS)
def test_deep_sums(row):
    for case in DEEP:
        _check(case, row)


EDGES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
WIDTHS = [*range(1, 11), 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 200]


@pytest.mark.parametrize("row", ROWS)
def test_every_number_of_rows_and_channels(row):
    for i, outputs in enumerate(WIDTHS):
        for rows in (EDGES[i % 13], EDGES[(5 * i + 3) % 13]):
            _check(Case(rows, channels=(1 + i % 9, outputs), residual=bool(i % 2)), row)
    for rows in EDGES:
        for outputs in (1, 17, 64):
            _check(Case(rows, channels=(rows, outputs)), row)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 512, 1000), (1, 300, 3), (128, 96, 200), (385, 17, 65), (191, 1, 1), (193, 33, 7)],
)
def test_linear(row, rows, inputs, outputs):
    _check(Case(rows, channels=(inputs, outputs), clamp=(-9, 8)), row)


def _random_case(rng: np.random.Generator, depthwise: bool) -> Case:
    def pick(low: int, high: int, count: int) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high + 1, count))

    kernel, dilation = pick(1, 4, 2), pick(1, 3, 2)
    size = tuple((k - 1) * d + 1 + int(e) for k, d, e in zip(kernel, dilation, rng.integers(0, 12, 2), strict=True))
    groups = int(rng.choice([1, 1, 2, 5]))
    channels = tuple(int(c) * groups for c in (rng.choice([1, 3, 4, 16, 17, 40]), rng.choice([1, 7, 16, 33, 64])))
    if depthwise:
        groups = int(rng.choice([2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 65, 100]))
        channels = (groups, groups)
    return Case(
        *pick(1, 3, 1), size, channels, kernel, pick(1, 3, 2), pick(0, 4, 4), dilation, groups,
        bool(rng.integers(2)), bool(rng.integers(2)), (-INF, INF) if rng.integers(2) else (-2.0, 3.0),
    )  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_random_convolutions(row):
    rng = np.random.default_rng(7)
    for seed in range(80):
        _check(_random_case(rng, depthwise=False), row, seed)


@pytest.mark.parametrize("row", DEPTHWISE)
def test_random_depthwise_convolutions(row):
    rng = np.random.default_rng(8)
    for seed in range(150):
        _check(_random_case(rng, depthwise=True), row, seed)


@pytest.mark.parametrize("row", DEPTHWISE)
def test_depthwise_channels_and_columns(row):
    for channels in [*range(2, 12), 15, 16, 17, 24, 31, 32, 33, 47, 49, 63, 65, 96, 130]:
        columns = 1 + channels % 13
        case = Case(2, (5, columns), (channels, channels), (3, 3), (1, 1), (1, 1, 1, 1), groups=channels)
        _check(case, row)
        _check(replace(case, stride=(2, 2), clamp=(0, 6), residual=channels % 3 == 0), row)
    for columns in range(3, 20):
        _check(Case(1, (2, columns), (5, 5), (1, 4), (1, 1), (0, 3, 0, 1), (1, 2), 5), row)
    _check(Case(1, (40, 30), (66, 66), (5, 5), pads=(2, 2, 2, 2), groups=66), row)  # many chunks


@pytest.mark.parametrize("row", [*ROWS, *DEPTHWISE])
def test_threads_and_batches_do_not_change_a_bit(row):
    cases = [
        Case(4, (17, 19), (24, 24), (3, 3), pads=(1, 1, 1, 1), groups=24),
        *([] if row.family == "sdwconv" else [Case(300, channels=(50, 70)), Case(4, (9, 9), (130, 80), (3, 3))]),
    ]
    for case in cases:
        arrays = case.arrays(3, integers=False)
        one = case.run(row, arrays, threads=1)
        for threads in (2, 3):
            np.testing.assert_array_equal(case.run(row, arrays, threads=threads), one)
        last = {name: array[-1:] if name in ("x", "residual") else array for name, array in arrays.items()}
        np.testing.assert_array_equal(replace(case, batch=1).run(row, last), one[-1:])


def test_fused_kernels_agree_to_the_bit():
    """All vector rows add the same products in the same order."""
    for params in (ROWS, DEPTHWISE):
        rows = [p.values[0] for p in params if not p.marks and p.values[0].isa != "scalar"]
        case = Case(2, (12, 11), (40, 40), (3, 3), (1, 1), (1, 1, 0, 2), groups=40 if params is DEPTHWISE else 1)
        arrays = case.arrays(4, integers=False)
        results = [case.run(row, arrays) for row in rows]
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("row", [*ROWS, *DEPTHWISE])
def test_nan_and_infinity_pass_through(row):
    case = Case(1, (4, 4), (20, 20), (1, 1), groups=20, clamp=(0, 6))
    arrays = case.arrays(5, integers=True)
    arrays["w"][:] = 1
    arrays["bias"][:] = 0
    arrays["x"][0, 1, 2, :3] = (np.nan, np.inf, -np.inf)
    got = case.run(row, arrays)
    assert np.isnan(got[0, 1, 2, 0])
    assert got[0, 1, 2, 1:3].tolist() == [6, 0]
    assert np.isnan(got).sum() == 1


@pytest.mark.parametrize("row", [*ROWS, *DEPTHWISE])
def test_a_row_is_chosen_by_the_shape(row):
    shape = (4, 4) if row.family == "sdwconv" else (4, 8)
    case = Case(1, (4, 4), shape, groups=4)
    args = case.args(case.arrays(0, integers=True))
    plan = Plan([Op(Kind.SCONV, (0,), 1, args)], [Buffer(64 * shape[0]), Buffer(64 * shape[1])], 0, isa=row.isa)
    assert plan.kernels == (row.name,)


BAD = [
    ({"groups": 3}, "groups"),
    ({"groups": 0}, "groups"),
    ({"in_channels": 0}, "channels"),
    ({"out_channels": -4}, "channels"),
    ({"kernel_width": 0}, "kernel"),
    ({"stride_height": 0}, "stride"),
    ({"dilation_width": -1}, "dilation"),
    ({"batch": -1}, "negative"),
    ({"out_width": -1}, "negative"),
    ({"pad_left": -(2**31)}, "padding"),
    ({"residual": 2}, "residual"),
    ({"residual": 1}, "inputs"),
    ({"weight": None}, "weight"),
    ({"batch": 2**31 - 1, "in_height": 2**31 - 1, "in_width": 2**31 - 1}, "too large"),
    ({"out_height": 5}, "the output has"),
    ({"in_height": 5}, "input 0 has"),
    ({"kernel_height": 2**28, "kernel_width": 2**28}, "too large"),
]


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_descriptions_are_refused(changes, message):
    case = Case(1, (4, 4), (4, 8), groups=2)
    args = case.args(case.arrays(0, integers=True), **changes)
    with pytest.raises(EngineError, match=message):
        Plan([Op(Kind.SCONV, (0,), 1, args)], [Buffer(64 * 4), Buffer(64 * 8)], 0)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize("kernel", ["sdwconv_scalar", "sdwconv_none", "sconv_none", ""])
def test_kernels_that_do_not_fit_are_refused(kernel):
    case = Case(1, (4, 4), (4, 8), groups=2)
    args = case.args(case.arrays(0, integers=True))
    with pytest.raises(EngineError, match=r"kernel|depthwise"):
        Plan([Op(Kind.SCONV, (0,), 1, args, kernel)], [Buffer(64 * 4), Buffer(64 * 8)], 0)
