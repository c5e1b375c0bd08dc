"""Observers without PyTorch: golden numbers, what must hold for all data, and what must be refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observer_cases import BATCHES, CONFIGS, GOLDEN, wave

from qtool.errors import DataError, QuantizationError
from qtool.ir import DType
from qtool.quantize import float32, search
from qtool.quantize.dyadic import DyadicHistogram
from qtool.quantize.mse import squared_errors
from qtool.quantize.observers import OBSERVERS, Flag, make_observer
from qtool.quantize.qparams import choose_qparams, quant_limits
from qtool.recipe import observers as known
from qtool.recipe.schema import ObserverConfig, QDType, Scheme

FROM_DATA = ("min_max", "moving_average_min_max", "histogram", "percentile", "entropy", "mse")
ORDER_FREE = ("min_max", "percentile", "entropy", "mse")
FIXED = {"scale": 0.5, "zero_point": 3}

numbers = st.floats(-1e6, 1e6, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=12), elements=numbers)


def affine(observer: str, **changes) -> ObserverConfig:
    return ObserverConfig(observer, **changes)


def observed(config: ObserverConfig, *batches, axis: int = 0):
    observer = make_observer(config, axis)
    for x in batches:
        observer.observe(x)
    return observer


# Golden numbers


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g.config}, {g.batches}")
def test_golden_numbers(golden) -> None:
    found = observed(CONFIGS[golden.config], *BATCHES[golden.batches]).qparams()
    assert found.scale.tolist() == [golden.scale]
    assert found.zero_point.tolist() == [golden.zero_point]


@pytest.mark.parametrize(
    ("dtype", "reduce_range", "given", "expected"),
    [
        (QDType.QUINT8, False, (None, None), (0, 255)),
        (QDType.QUINT8, True, (None, None), (0, 127)),
        (QDType.QINT8, False, (None, None), (-128, 127)),
        (QDType.QINT8, True, (None, None), (-64, 63)),
        (QDType.QINT8, False, (-127, 127), (-127, 127)),
        (QDType.QINT8, True, (-127, 127), (-64, 63)),
        (QDType.QUINT8, True, (0, 255), (0, 127)),
    ],
)
def test_limits(dtype, reduce_range, given, expected) -> None:
    config = ObserverConfig("min_max", dtype, reduce_range=reduce_range, quant_min=given[0], quant_max=given[1])
    assert quant_limits(config) == expected


@pytest.mark.parametrize(
    ("low", "high", "config", "scale", "zero_point"),
    [
        (-1.0, 0.9, ObserverConfig("min_max", QDType.QINT8, Scheme.PER_TENSOR_SYMMETRIC), 1 / 127.5, 0),
        (0.1, 1.0, ObserverConfig("min_max", QDType.QINT8, Scheme.PER_TENSOR_SYMMETRIC), 1 / 127.5, 0),
        (0.0, 2.55, affine("min_max"), 0.01, 0),
        (-2.55, 0.0, affine("min_max"), 0.01, 255),
        (-1.0, 1.0, ObserverConfig("min_max", scheme=Scheme.PER_TENSOR_SYMMETRIC), 1 / 127.5, 128),
        (
            -1.0,
            1.0,
            ObserverConfig("min_max", scheme=Scheme.PER_TENSOR_SYMMETRIC, quant_min=0, quant_max=127),
            1 / 63.5,
            63,
        ),
        (-1.0, 3.0, affine("min_max", dtype=QDType.QINT8), 4 / 255, -64),
        (5.0, 5.0, affine("min_max"), 5 / 255, 0),
    ],
)
def test_formulas(low, high, config, scale, zero_point) -> None:
    found = choose_qparams(np.array([low], np.float32), np.array([high], np.float32), config)
    assert found.scale.dtype == np.float32
    assert found.zero_point.dtype == np.int32
    assert found.scale[0] == pytest.approx(scale, rel=1e-6)
    assert found.zero_point[0] == zero_point


# What holds for all data


@pytest.mark.parametrize("name", FROM_DATA)
@pytest.mark.parametrize("scheme", [Scheme.PER_TENSOR_AFFINE, Scheme.PER_TENSOR_SYMMETRIC])
@given(batches=st.lists(arrays, min_size=1, max_size=3), dtype=st.sampled_from(QDType))
@settings(max_examples=25)
def test_parameters_are_sound(name, scheme, batches, dtype) -> None:
    config = ObserverConfig(name, dtype, scheme)
    observer = observed(config, *batches)
    found = observer.qparams()
    low, high = quant_limits(config)
    assert found.dtype is (DType.UINT8 if dtype is QDType.QUINT8 else DType.INT8)
    assert found.axis is None
    assert found.scale.shape == found.zero_point.shape == (1,)
    assert np.isfinite(found.scale[0])
    assert found.scale[0] >= np.float32(config.eps)
    assert low <= found.zero_point[0] <= high
    assert found.dequantize(found.quantize(np.zeros(1, np.float32)))[0] == 0.0
    lowest, highest = observer.min_max()
    assert lowest[0] == min(x.min() for x in batches)
    assert highest[0] == max(x.max() for x in batches)


@given(x=arrays, reduce_range=st.booleans())
def test_min_max_loses_half_a_step_at_most(x, reduce_range) -> None:
    found = observed(affine("min_max", reduce_range=reduce_range), x).qparams()
    error = np.abs(found.dequantize(found.quantize(x)).astype(np.float64) - x)
    assert error.max() <= found.scale[0] * 0.5 * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("name", ORDER_FREE)
@given(x=hnp.arrays(np.float32, st.integers(2, 400), elements=numbers), data=st.data())
@settings(max_examples=25)
def test_order_and_size_of_batches_do_not_matter(name, x, data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, x.size), max_size=4)))
    shuffled = np.array(data.draw(st.permutations(x.tolist())), np.float32)
    whole = observed(affine(name), x).qparams()
    assert observed(affine(name), *np.split(shuffled, cuts)).qparams() == whole


@pytest.mark.parametrize("name", FROM_DATA)
def test_layout_in_memory_does_not_matter(name) -> None:
    x = wave(600, 1.0, 0.2, 3).reshape(5, 6, 20)
    strided = np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert observed(affine(name), strided).qparams() == observed(affine(name), x).qparams()


@pytest.mark.parametrize("name", [n for n in OBSERVERS if "per_channel" not in n])
def test_memory_is_bounded(name) -> None:
    config = affine(name, options=FIXED if name == "fixed" else {})
    observer = make_observer(config)
    sizes = []
    for k in range(40):
        observer.observe(wave(1000, 1.0 + k, 0.1 * k, 3))
        sizes.append(len(pickle.dumps(observer)))
    assert max(sizes) <= sizes[1] + 64
    assert max(sizes) < 300_000


def test_moving_average_follows_its_formula() -> None:
    extremes = [(-1.0, 2.0), (-3.0, 1.0), (0.5, 6.0)]
    config = affine("moving_average_min_max", options={"averaging_constant": 0.25})
    observer = observed(config, *(np.array(pair, np.float32) for pair in extremes))
    low, high = observer.range()
    assert low.tolist() == [(-1.0 * 0.75 - 3.0 * 0.25) * 0.75 + 0.5 * 0.25]
    assert high.tolist() == [(2.0 * 0.75 + 1.0 * 0.25) * 0.75 + 6.0 * 0.25]
    assert [v.tolist() for v in observer.min_max()] == [[-3.0], [6.0]]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["per_channel_min_max", "moving_average_per_channel_min_max"])
def test_channels_are_apart(name, axis) -> None:
    config = ObserverConfig(name, QDType.QINT8, Scheme.PER_CHANNEL_SYMMETRIC)
    x = wave(4 * 5 * 6, 2.0, 0.3, 3).reshape(4, 5, 6)
    found = observed(config, x, x * 2, axis=axis).qparams()
    assert found.axis == axis
    per_tensor = "min_max" if name == "per_channel_min_max" else "moving_average_min_max"
    single = ObserverConfig(per_tensor, QDType.QINT8, Scheme.PER_TENSOR_SYMMETRIC)
    for k in range(x.shape[axis]):
        channel = np.take(x, k, axis)
        alone = observed(single, channel, channel * 2).qparams()
        assert found.scale[k] == alone.scale[0]
        assert found.zero_point[k] == 0


# The histogram observer's parts, against slow and plain definitions


def slow_narrow(histogram: np.ndarray, low: float, high: float) -> tuple[int, int]:
    """PyTorch's loop, one step at a time."""
    cumulative = np.cumsum(histogram, dtype=np.float64).astype(np.float32)
    total = float(float32.total(histogram))
    alpha, beta, start, end, least = 0.0, 1.0, 0, histogram.size - 1, np.inf
    while alpha < beta:
        next_alpha, next_beta = alpha + 1e-5, beta - 1e-5
        left, right = start, end
        while left < end and cumulative[left] < np.float32(next_alpha * total):
            left += 1
        while right > start and cumulative[right] > np.float32(next_beta * total):
            right -= 1
        next_start, next_end = start, end
        if left - start > end - right:
            next_start, alpha = left, next_alpha
        else:
            next_end, beta = right, next_beta
        if (next_start, next_end) == (start, end):
            continue
        error = search.squared_errors(histogram, high - low, np.array([next_start]), np.array([next_end]))[0]
        if error > least:
            break
        least, start, end = error, next_start, next_end
    return start, end


@pytest.mark.parametrize("seed", range(10))
def test_search_takes_the_steps_of_the_plain_loop(seed) -> None:
    rng = np.random.default_rng(seed)
    bins = 256
    shapes = [
        rng.random(bins),
        rng.random(bins) ** 8,
        np.exp(-(np.linspace(-3, 5, bins) ** 2)),
        rng.integers(0, 2, bins),
    ]
    histogram = (shapes[seed % 4] * 10 ** rng.uniform(1, 5)).astype(np.float32)
    histogram[rng.integers(0, bins)] += np.float32(1e3)
    low, high = np.float32(-1.5), np.float32(2.5)
    start, end = slow_narrow(histogram, float(low), float(high))
    width = (high - low) / np.float32(bins)
    expected = low + width * np.float32(start), low + width * np.float32(end + 1)
    assert search.narrow(histogram, low, high) == expected


def test_search_minimizes_the_error_it_estimates() -> None:
    """The estimated error is close to that of really quantizing numbers spread over the bins."""
    histogram = np.exp(-(np.linspace(-4, 4, 512) ** 2)).astype(np.float32)
    histogram /= histogram.sum()
    starts, ends = np.array([0, 100, 200]), np.array([511, 411, 311])
    estimated = search.squared_errors(histogram, 8.0, starts, ends)
    points = (np.arange(512 * 64) + 0.5) / 64 * (8.0 / 512)
    for k in range(3):
        low, high = starts[k] * 8.0 / 512, (ends[k] + 1) * 8.0 / 512
        step = (high - low) / 256
        level = np.clip(np.floor((points - low) / step), 0, 255)
        errors = ((level + 0.5) * step + low - points) ** 2
        assert estimated[k] == pytest.approx(float(np.repeat(histogram, 64) @ errors / 64), rel=0.02)


@given(x=hnp.arrays(np.float32, st.integers(2, 300), elements=numbers), bins=st.integers(2, 70))
def test_bins_of_a_histogram(x, bins) -> None:
    low, high = x.min(), x.max()
    if low == high:
        return
    expected = [0] * bins
    for value in x:
        place = int((value - low) * np.float32(bins) / (high - low))
        expected[min(place, bins - 1)] += 1
    assert float32.histogram(x, bins, low, high).tolist() == expected


def test_histogram_longer_than_a_chunk() -> None:
    x = wave(3 * float32.CHUNK + 17, 1.0, 0.0)
    parts = [float32.histogram(part, 99, x.min(), x.max()) for part in np.array_split(x, 7)]
    assert float32.histogram(x, 99, x.min(), x.max()).tolist() == sum(parts).tolist()
    assert sum(parts).sum() == x.size


@given(start=st.floats(-1e3, 1e3, width=32), reach=st.floats(0.0009765625, 1e3, width=32), count=st.integers(2, 500))
def test_linspace_is_even_and_ends_where_it_should(start, reach, count) -> None:
    low, high = np.float32(start), np.float32(start) + np.float32(reach)
    found = float32.linspace(low, high, count)
    assert found[0] == low
    assert found[-1] == high
    np.testing.assert_allclose(found, np.linspace(float(low), float(high), count), atol=2e-4)


@given(x=hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(8, 700)), elements=st.floats(0, 1, width=32)))
def test_total_is_a_sum(x) -> None:
    np.testing.assert_allclose(float32.total(x), x.sum(axis=1, dtype=np.float64), rtol=1e-5)


# Observers that cut outliers off


@given(st.lists(hnp.arrays(np.float32, st.integers(1, 60), elements=numbers), min_size=1, max_size=5))
def test_dyadic_histogram_counts_each_value_once(batches) -> None:
    histogram = DyadicHistogram()
    for x in batches:
        histogram.add(x, np.abs(x).max())
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


# Fixed and placeholder


def test_fixed_gives_what_the_recipe_says() -> None:
    observer = make_observer(affine("fixed", options=FIXED))
    assert observer.observed
    found = observer.qparams()
    assert (found.scale.tolist(), found.zero_point.tolist()) == ([0.5], [3])
    assert [v.tolist() for v in observer.min_max()] == [[-1.5], [126.0]]
    observer.observe(np.array([-400.0, 300.0], np.float32))
    assert observer.qparams() == found
    assert observer.flags() == {Flag.SATURATED: 1}


def test_placeholder_has_no_parameters() -> None:
    observer = make_observer(affine("placeholder"))
    assert observer.observed
    with pytest.raises(QuantizationError, match="run time"):
        observer.qparams()


# Warnings


def test_flags() -> None:
    assert observed(affine("min_max"), wave(100, 1.0, 0.0)).flags() == {}
    assert make_observer(affine("min_max")).flags() == {}
    assert observed(affine("min_max"), np.zeros(9, np.float32)).flags() == {Flag.SCALE_AT_EPS: 1, Flag.CONSTANT: 1}
    assert observed(affine("min_max"), np.full(9, 3, np.float32)).flags() == {Flag.CONSTANT: 1}
    long_tail = np.append(wave(5000, 1.0, 0.0, 3), 90.0).astype(np.float32)
    assert observed(affine("percentile", options={"percentile": 99.0}), long_tail).flags() == {Flag.SATURATED: 1}


def test_flags_count_channels() -> None:
    weight = wave(4 * 9, 1.0, 0.0).reshape(4, 9)
    weight[1], weight[3] = 0, 1e-12
    config = ObserverConfig("per_channel_min_max", QDType.QINT8, Scheme.PER_CHANNEL_SYMMETRIC)
    assert observed(config, weight).flags() == {Flag.SCALE_AT_EPS: 2, Flag.CONSTANT: 2}


# What is refused


@pytest.mark.parametrize("name", FROM_DATA)
def test_nothing_observed(name) -> None:
    observer = make_observer(affine(name))
    observer.observe(np.zeros((0, 3), np.float32))
    assert not observer.observed
    for ask in (observer.qparams, observer.min_max, observer.range):
        with pytest.raises(QuantizationError, match=f"'{name}' has seen no data"):
            ask()


@pytest.mark.parametrize("name", [*FROM_DATA, "fixed", "placeholder"])
@pytest.mark.parametrize("bad", [[np.nan, np.nan], [np.inf], [-np.inf, np.nan, np.inf]])
def test_numbers_that_are_not_finite(name, bad) -> None:
    observer = make_observer(affine(name, options=FIXED if name == "fixed" else {}))
    x = np.concatenate([wave(50, 1.0, 0.0), np.array(bad, np.float32)])
    nan = int(np.isnan(bad).sum())
    with pytest.raises(DataError, match=rf"^{nan} NaN and {len(bad) - nan} infinite values among {x.size};"):
        observer.observe(x)


def test_channels_that_change() -> None:
    config = ObserverConfig("per_channel_min_max", scheme=Scheme.PER_CHANNEL_AFFINE)
    with pytest.raises(DataError, match="got a batch with 4 channels, expected 3"):
        observed(config, np.ones((3, 2), np.float32), np.ones((4, 2), np.float32))
    with pytest.raises(QuantizationError, match="axis 2"):
        observed(config, np.ones((3, 2), np.float32), axis=2)


@pytest.mark.parametrize("name", ["min_max", "moving_average_min_max", "histogram"])
def test_ranges_beyond_float32(name) -> None:
    largest = np.finfo(np.float32).max
    with pytest.raises(QuantizationError, match="too wide"):
        observed(affine(name), np.array([-largest, 0, 0, 1, largest], np.float32)).qparams()


@pytest.mark.parametrize("name", FROM_DATA)
def test_the_largest_range_that_goes(name) -> None:
    x = wave(1000, 1.6e38, 0.0)
    found = observed(affine(name), x).qparams()
    assert 0.2 < found.scale[0] * 255 / (x.max() - x.min()) < 1.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ObserverConfig("minmax"), "is not known"),
        (ObserverConfig("min_max", scheme=Scheme.PER_CHANNEL_AFFINE), "per_channel_min_max"),
        (ObserverConfig("per_channel_min_max"), "works per channel"),
        (ObserverConfig("histogram", scheme=Scheme.PER_CHANNEL_SYMMETRIC), "works per tensor"),
        (ObserverConfig("min_max", options={"bins": 3}), "takes no option 'bins'; it takes none"),
        (ObserverConfig("histogram", options={"bins": 3}), "bins 3, expected a whole number from 64"),
        (ObserverConfig("moving_average_min_max", options={"averaging_constant": 0.0}), "above 0"),
        (ObserverConfig("percentile", options={"percentile": 101}), "from 50 to 100"),
        (ObserverConfig("fixed", options={"scale": 1.0}), "needs the option 'zero_point'"),
        (ObserverConfig("fixed", options={"scale": 1.0, "zero_point": -1}), "0 to 255 for quint8"),
        (ObserverConfig("fixed", options={"scale": float("nan"), "zero_point": 1}), "scale nan"),
        (ObserverConfig("min_max", quant_min=0), "go together"),
        (ObserverConfig("min_max", quant_min=1, quant_max=5), "quant_min <= 0"),
        (ObserverConfig("min_max", quant_min=0, quant_max=0), "quant_min <= 0"),
        (ObserverConfig("min_max", QDType.QINT8, quant_min=0, quant_max=200), "<= 127"),
        (ObserverConfig("min_max", quant_min=0, quant_max=1, reduce_range=True), "leaves nothing"),
        (ObserverConfig("min_max", scheme=Scheme.PER_TENSOR_SYMMETRIC, reduce_range=True), "symmetric"),
        (ObserverConfig("min_max", eps=0.0), "eps"),
    ],
)
def test_configurations_that_make_no_sense(config, message) -> None:
    with pytest.raises(QuantizationError, match=message):
        make_observer(config)


def test_every_observer_of_a_recipe_exists() -> None:
    assert set(OBSERVERS) == set(known.OBSERVERS)
    for name, info in known.OBSERVERS.items():
        scheme = Scheme.PER_CHANNEL_AFFINE if info.per_channel else Scheme.PER_TENSOR_AFFINE
        make_observer(ObserverConfig(name, scheme=scheme, options=FIXED if name == "fixed" else {}))
        if info.counterpart:
            assert known.OBSERVERS[info.counterpart].counterpart == name
            assert known.OBSERVERS[info.counterpart].per_channel != info.per_channel
