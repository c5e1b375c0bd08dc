"""The three convolutions of training on every row that they run on, against float64 sums.

A sum of k products has, in any order, an error of at most gamma(k + 2) times the sum of the absolute values; where all
values are small integers it is exact. No bit depends on the number of threads.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from kernels import isas, kernel_rows, run_kernel
from training_cases import CASES, DEPTHWISE, Conv, chain_error, forward, input_grad, random_case, weight_grad

from qtool.errors import EngineError
from qtool.native import Buffer, KernelRow, Kind, Op, Plan, abi
from qtool.native.training import ConvGeometry, Training

ROWS = kernel_rows("sconv")


def _check(got: np.ndarray, expected: np.ndarray, bound: np.ndarray, what: str) -> None:
    assert got.shape == expected.shape
    worst = (abs(got - expected) - bound).max(initial=-1)
    assert worst <= 0, f"{what}: {worst} over the bound"


@lru_cache(maxsize=256)  # the same for every row
def _expected(case: Conv, seed: int, integers: bool) -> dict[Kind, tuple]:
    """The inputs of each kind, the result in float64, and how far from it a float32 one may be."""
    a = case.arrays(seed, integers)
    x, w, bias, dy = a["x"], a["w"], a["bias"], a["dy"]
    size = forward(case, abs(x), abs(w)) + abs(bias)
    found = {
        Kind.TCONV: ([x, w, bias], forward(case, x, w) + bias, size, w[0].size),
        Kind.TCONV_INPUT_GRAD: (
            [dy, w],
            input_grad(case, dy, w),
            input_grad(case, abs(dy), abs(w)),
            w[..., 0].size // case.groups,
        ),
        Kind.TCONV_WEIGHT_GRAD: (
            [x, dy],
            weight_grad(case, x, dy),
            weight_grad(case, abs(x), abs(dy)),
            int(np.prod(case.y_shape[:3])),
        ),
    }
    return {
        kind: (inputs, expected, size * (0.0 if integers else chain_error(steps + 3)))
        for kind, (inputs, expected, size, steps) in found.items()
    }


def _check_rows(case: Conv, rows: dict[Kind, KernelRow], seed: int = 0) -> None:
    """Each kind on its row, exactly with integers and within the bound with others."""
    for integers in (True, False):
        expected = _expected(case, seed, integers)
        for kind, row in rows.items():
            inputs, result, bound = expected[kind]
            like = np.empty(result.shape, np.float32)
            got = run_kernel(row, kind, case.args(), inputs, like, threads=1 if integers else 2)
            _check(got, result, bound, f"{case} {kind.name} {row.name}")


def _all_on(row: KernelRow) -> dict[Kind, KernelRow]:
    return dict.fromkeys((Kind.TCONV, Kind.TCONV_INPUT_GRAD, Kind.TCONV_WEIGHT_GRAD), row)


@pytest.mark.parametrize("row", ROWS)
def test_chosen_convolutions(row):
    for case in CASES:
        _check_rows(case, _all_on(row))


@pytest.mark.parametrize("row", ROWS)
def test_random_convolutions(row):
    rng = np.random.default_rng(11)
    for seed in range(60):
        _check_rows(random_case(rng, depthwise=False), _all_on(row), seed)


@pytest.mark.parametrize("row", ROWS)
def test_every_number_of_channels(row):
    for i, channels in enumerate([*range(1, 18), 31, 32, 33, 64, 65]):
        case = Conv(
            1 + i % 3, (1 + i % 9, 1 + (4 * i) % 9), (channels, 1 + i), (1 + i % 3, 1 + i % 2), padding=((1, 0), (0, 1))
        )
        _check_rows(case, _all_on(row), i)


DEPTHWISE_ROWS = [
    pytest.param(kind, *row.values, id=f"{kind.name}-{row.id}", marks=row.marks)
    for kind, family in (
        (Kind.TCONV, "sdwconv"),
        (Kind.TCONV_INPUT_GRAD, "sdwconv"),
        (Kind.TCONV_WEIGHT_GRAD, "tconv"),
    )
    for row in kernel_rows(family)
]


@pytest.mark.parametrize(("kind", "row"), DEPTHWISE_ROWS)
def test_depthwise(kind, row):
    rng = np.random.default_rng(12)
    for seed, case in enumerate([*DEPTHWISE, *(random_case(rng, depthwise=True) for _ in range(50))]):
        _check_rows(case, {kind: row}, seed)


@pytest.mark.parametrize("isa", isas())
def test_threads_change_no_bit(isa):
    found = []
    for threads in (1, 2, 3):
        training = Training(threads, isa)
        results = []
        for case in (CASES[1], CASES[3], CASES[7], CASES[10], DEPTHWISE[1]):
            a = case.arrays(3, integers=False)
            results += [
                training.conv(a["x"], a["w"], a["bias"], case.geometry),
                training.conv_input_grad(a["dy"], a["w"], case.x_shape, case.geometry),
                training.conv_weight_grad(a["x"], a["dy"], case.weight_shape, case.geometry),
            ]
        found.append(results)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isa", isas())
def test_weights_are_read_at_every_call(isa):
    training, case = Training(2, isa), CASES[0]
    for seed in range(3):
        a = case.arrays(seed, integers=True)
        np.testing.assert_array_equal(training.conv(a["x"], a["w"], None, case.geometry), forward(case, a["x"], a["w"]))
        dx = training.conv_input_grad(a["dy"], a["w"], case.x_shape, case.geometry)
        np.testing.assert_array_equal(dx, input_grad(case, a["dy"], a["w"]))
        dw = training.conv_weight_grad(a["x"], a["dy"], case.weight_shape, case.geometry)
        np.testing.assert_array_equal(dw, weight_grad(case, a["x"], a["dy"]))


def test_nan_and_infinity_stay(need_native):
    x, w = np.zeros((1, 4, 4, 3), np.float32), np.ones((2, 1, 1, 3), np.float32)
    x[0, 1, 2] = [np.nan, 0, 0]
    x[0, 3, 3] = [np.inf, 0, 0]
    y = Training().conv(x, w, None, ConvGeometry())
    assert np.isnan(y[0, 1, 2]).all()
    assert np.isposinf(y[0, 3, 3]).all()
    assert np.isnan(Training().conv_weight_grad(x, y, w.shape, ConvGeometry())).any()


def test_bad_arrays_are_refused(need_native):
    training, geometry = Training(), ConvGeometry()
    x, w = np.zeros((1, 4, 4, 3), np.float32), np.zeros((2, 3, 3, 3), np.float32)
    bad = [
        (lambda: training.conv(x.astype(np.float64), w, None, geometry), "conv x: got a float64 array"),
        (lambda: training.conv(x[:, ::2], w, None, geometry), "conv x: got a strided float32"),
        (lambda: training.conv(x[0], w, None, geometry), "of rank 4"),
        (lambda: training.conv(x, [1.0], None, geometry), "conv weight: got list"),
        (lambda: training.conv(x, w[..., :2].copy(), None, geometry), "got 3 channels"),
        (lambda: training.conv(x, w, np.zeros(3, np.float32), geometry), r"of shape \(2,\)"),
        (lambda: training.conv(x[:, :2].copy(), w, None, geometry), r"got a picture of \(2, 4\)"),
        (lambda: training.conv(x, w, None, ConvGeometry(stride=(0, 1))), "expected one that fits"),
        (lambda: training.conv(x, w, None, ConvGeometry(groups=2)), "2 groups"),
        (lambda: training.conv_input_grad(x, w, x.shape, geometry), r"dy: got a float32 array of shape \(1, 4"),
        (lambda: training.conv_weight_grad(x, x, w.shape, geometry), "conv_weight_grad dy"),
    ]
    for call, message in bad:
        with pytest.raises(EngineError, match=message):
            call()


def test_hostile_sizes_are_refused(need_native):
    """What would need more memory or time than any machine has is refused when the plan is made."""
    changes = [
        {"kernel_height": 1 << 20, "kernel_width": 1 << 20},
        {"kernel_height": 1 << 28},
        {"stride_height": 0},
        {"groups": 2},
        {"residual": 1},
        {"in_width": 1 << 30, "in_height": 1 << 30},
    ]
    for kind in (Kind.TCONV, Kind.TCONV_INPUT_GRAD, Kind.TCONV_WEIGHT_GRAD):
        for change in changes:
            args = CASES[0].args()
            for name, value in change.items():
                setattr(args, name, value)
            inputs = (0, 1, 2) if kind is Kind.TCONV else (0, 1)
            with pytest.raises(EngineError):
                Plan([Op(kind, inputs, 3, args)], [Buffer(4096)] * 4, 0)


def test_a_kind_needs_its_arguments(need_native):
    with pytest.raises(EngineError, match="expected ConvArgs"):
        Plan([Op(Kind.TCONV, (0,), 0, abi.LutArgs())], [Buffer(1)], 0)
