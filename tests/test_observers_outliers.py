"""Observers that cut outliers off: percentile, entropy and least squared error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observer_cases import affine, numbers, observed, wave

from qtool.quantize.dyadic import DyadicHistogram
from qtool.quantize.loops import Loops
from qtool.quantize.mse import squared_errors
from qtool.quantize.qparams import quant_limits
from qtool.recipe.schema import ObserverConfig, QDType, Scheme


@given(st.lists(hnp.arrays(np.float32, st.integers(1, 60), elements=numbers), min_size=1, max_size=5))
def test_dyadic_histogram_counts_each_value_once(batches) -> None:
    histogram = DyadicHistogram()
    for x in batches:
        histogram.add(x, np.abs(x).max(), Loops())
    every = np.concatenate(batches)
    half = histogram.counts.size // 2
    expected = np.floor(every.astype(np.float64) / histogram.width).astype(int) + half
    assert histogram.counts.tolist() == np.bincount(expected, minlength=2 * half).tolist()


@pytest.mark.parametrize("scheme", [Scheme.PER_TENSOR_AFFINE, Scheme.PER_TENSOR_SYMMETRIC])
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile_leaves_out_its_share(scheme, percentile) -> None:
    x = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    observer = observed(affine("percentile", scheme=scheme, options={"percentile": percentile}), x)
    low, high = (float(v[0]) for v in observer.range())
    outside, width = x.size * (1 - percentile / 100), 2.0 * 8 / 16384
    if scheme.symmetric:
        reach = max(-low, high)
        assert (np.abs(x) > reach + width).sum() <= outside + 1e-6 <= (np.abs(x) > reach - width).sum() + 1
    else:
        assert (x < low - width).sum() <= outside / 2 + 1e-6 <= (x < low + width).sum() + 1
        assert (x > high + width).sum() <= outside / 2 + 1e-6 <= (x > high - width).sum() + 1


def real_error(observer, x: np.ndarray) -> float:
    """Mean squared error, with values outside the limits clamped to them."""
    found = observer.qparams()
    low, high = quant_limits(observer.config)
    steps = np.clip(np.rint(x / found.scale) + found.zero_point, low, high)
    return float(np.mean(((steps - found.zero_point) * found.scale - x).astype(np.float64) ** 2))


SHAPED = {
    "normal": lambda rng: rng.standard_normal(40_000),
    "relu": lambda rng: np.maximum(rng.standard_normal(40_000), 0),
    "laplace": lambda rng: rng.laplace(size=40_000),
    "uniform": lambda rng: rng.random(40_000),
    "skewed": lambda rng: np.where(
        rng.random(40_000) < 0.9, rng.normal(size=40_000) * 0.2, rng.exponential(size=40_000)
    ),
    "outlier": lambda rng: np.append(rng.standard_normal(40_000), 60.0),
    "hard tails": lambda rng: np.maximum(rng.standard_t(3, 40_000), 0),
}


@pytest.mark.parametrize("shape", SHAPED)
@pytest.mark.parametrize("scheme", [Scheme.PER_TENSOR_AFFINE, Scheme.PER_TENSOR_SYMMETRIC])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_mse_is_the_best_of_all(shape, scheme, reduce_range) -> None:
    dtype = QDType.QINT8 if scheme.symmetric else QDType.QUINT8
    x = SHAPED[shape](np.random.default_rng(3)).astype(np.float32)
    errors = {
        name: real_error(observed(ObserverConfig(name, dtype, scheme, reduce_range), x), x)
        for name in ("mse", "min_max", "histogram", "percentile", "entropy")
    }
    assert errors["mse"] <= min(errors.values()) * 1.005


def test_mse_estimates_the_real_error() -> None:
    x = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    config = affine("mse")
    observer = observed(config, x)
    weights = np.full(x.size, 1 / x.size, np.float32)
    ends = np.array([[v[0] for v in observer.range()]], np.float64)
    assert squared_errors(x, weights, ends, config)[0] == pytest.approx(real_error(observer, x), rel=1e-4)


@pytest.mark.parametrize("scheme", [Scheme.PER_TENSOR_AFFINE, Scheme.PER_TENSOR_SYMMETRIC])
def test_entropy_keeps_the_bulk_and_cuts_the_tail(scheme) -> None:
    rng = np.random.default_rng(2)
    uniform = rng.random(50_000).astype(np.float32) * 2 - 1
    low, high = observed(affine("entropy", scheme=scheme), uniform).range()
    assert max(-low[0], high[0]) > 0.97
    tailed = np.append(rng.standard_normal(50_000), [80.0, -90.0]).astype(np.float32)
    low, high = observed(affine("entropy", scheme=scheme), tailed).range()
    assert 2.5 < max(-low[0], high[0]) < 40


@pytest.mark.parametrize("name", ["percentile", "entropy", "mse"])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided_data_keeps_one_side(name, sign) -> None:
    x = sign * np.maximum(wave(5000, 3.0, 0.0, 3), 0)
    found = observed(affine(name), x).qparams()
    assert found.zero_point[0] == (0 if sign > 0 else 255)


@pytest.mark.parametrize("name", ["percentile", "entropy", "mse"])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_far_from_zero_are_reached(name, sign) -> None:
    x = sign * wave(1000, 0.02, 100.0)
    low, high = observed(affine(name), x).range()
    assert low[0] <= np.median(x) <= high[0]
    assert observed(affine(name), x).qparams().scale[0] > 0.38
