"""The mean of a layer's output is the float layer's again, though its weights are rounded coarsely."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from qtool.engine.session import Session
from qtool.ops import Builder
from qtool.quantize.calibrate import calibrate
from qtool.quantize.convert import convert
from qtool.quantize.prepare import prepare
from qtool.recipe.presets import get_preset
from qtool.recipe.schema import ObserverConfig, QConfig, QDType, Rule, Scheme

RNG = np.random.default_rng(3)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = START


def _layer(op, bias):
    b = Builder("net")
    shape = {"conv2d": (6, 2, 3, 3), "conv1d": (6, 4, 3), "linear": (6, 4)}[op]
    x = b.input("x", {"conv2d": ("N", 4, 9, 9), "conv1d": ("N", 4, 9), "linear": ("N", 5, 4)}[op])
    attrs = {"groups": 2} if op == "conv2d" else {}
    weight = RNG.uniform(0.1, 1.0, shape).astype(np.float32)
    weight.reshape(6, -1)[:, 0] = 60.0  # so that the others are rounded to few levels
    inputs = [x, b.param("layer.weight", weight)]
    if bias:
        inputs.append(b.param("layer.bias", RNG.standard_normal(6).astype(np.float32)))
    return b.finish([b.node(op, inputs, "layer", **attrs)])


def _quantized(graph, correct, batches):
    accurate = get_preset("accurate")
    weight = ObserverConfig("min_max", QDType.QINT8, Scheme.PER_TENSOR_SYMMETRIC, options=MappingProxyType({}))
    qconfig = QConfig(accurate.activation, weight, bias_correction=correct)
    return convert(calibrate(prepare(graph, [Rule("", qconfig)]), batches))


@pytest.mark.parametrize("op", ["conv2d", "conv1d", "linear"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_error_goes(op, bias):
    graph = _layer(op, bias)
    shape = [8 if isinstance(n, str) else n for n in graph.values["x"].shape]
    batches = [{"x": RNG.uniform(0.5, 2.0, shape).astype(np.float32)} for _ in range(4)]
    channel = 2 if op == "linear" else 1
    axes = tuple(axis for axis in range(len(shape)) if axis != channel)

    def mean_error(quantized):
        real, made = Session(graph), Session(quantized)
        name = graph.outputs[0]
        errors = [made.run(feeds)[name].mean(axes) - real.run(feeds)[name].mean(axes) for feeds in batches]
        return np.abs(np.mean(errors, axis=0)).mean()

    plain, corrected = (mean_error(_quantized(graph, correct, batches)) for correct in (False, True))
    assert corrected < plain / 3


def test_only_the_preset_accurate_does_it():
    assert get_preset("accurate").bias_correction
    assert not any(get_preset(name).bias_correction for name in ("fbgemm", "qnnpack", "x86", "onednn", "default"))


def test_debug_gives_the_same_bits():
    graph = _layer("conv2d", True)
    batches = [{"x": RNG.uniform(0.5, 2.0, (2, 4, 9, 9)).astype(np.float32)}]
    calibrated = calibrate(prepare(graph, [Rule("", get_preset("accurate"))]), batches)
    a, b = (Session(convert(calibrated, debug=debug)).run(batches[0]) for debug in (False, True))
    assert all((a[name] == b[name]).all() for name in a)
