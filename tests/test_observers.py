"""Observers without PyTorch: golden numbers, what must hold for all data, and what must be refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observer_cases import BATCHES, CONFIGS, GOLDEN, affine, numbers, observed, wave

from qtool.errors import DataError, QuantizationError
from qtool.ir import DType
from qtool.quantize.observers import OBSERVERS, Flag, make_observer
from qtool.quantize.qparams import choose_qparams, quant_limits
from qtool.recipe import observers as known
from qtool.recipe.schema import ObserverConfig, QDType, Scheme

FROM_DATA = ("min_max", "moving_average_min_max", "histogram", "percentile", "entropy", "mse")
ORDER_FREE = ("min_max", "percentile", "entropy", "mse")
FIXED = {"scale": 0.5, "zero_point": 3}

arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=12), elements=numbers)


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
