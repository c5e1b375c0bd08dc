"""Channels with a bias and next to no weights: on QNNPACK the bias has to fit into 32 bits of the channel's steps."""

from __future__ import annotations

import numpy as np
import pytest

from qtool.engine.session import Session
from qtool.ops import Builder
from qtool.quantize.calibrate import calibrate
from qtool.quantize.convert import convert
from qtool.quantize.prepare import PrepareOptions, prepare
from qtool.recipe.presets import get_preset
from qtool.recipe.schema import Backend, Mode, Rule

BIASES = np.array([0.5, -0.75, 40.0, -90.0], np.float32)
OPS = {
    "conv2d": ((4, 2, 3, 3), ("N", 2, 8, 8)),
    "conv_transpose2d": ((2, 2, 3, 3), ("N", 2, 8, 8)),
    "linear": ((4, 5), ("N", 5)),
}
PRESETS = ("accurate", "qnnpack", "default_per_channel")


def calibrated(op, dead, preset, backend="qnnpack"):
    """A layer with weights of size 1, but where ``dead`` gives a smaller size for the last two outputs."""
    rng = np.random.default_rng(0)
    shape, x_shape = OPS[op]
    weight = rng.uniform(-1, 1, shape).astype(np.float32)
    axis, groups = (1, 2) if op == "conv_transpose2d" else (0, 1)
    sizes = np.ones(shape[axis], np.float32)
    sizes[sizes.size // 2 :] = dead
    weight *= sizes.reshape([-1 if n == axis else 1 for n in range(weight.ndim)])
    b = Builder("net")
    x = b.input("x", x_shape)
    inputs = [x, b.param("layer.weight", weight), b.param("layer.bias", BIASES)]
    graph = b.finish([b.node(op, inputs, "layer", **({"groups": groups} if groups > 1 else {}))])
    batches = [{"x": rng.uniform(-1, 1, (4, *x_shape[1:])).astype(np.float32)}]
    options = PrepareOptions(Mode.STATIC, Backend(backend))
    return graph, calibrate(prepare(graph, [Rule("", get_preset(preset))], options), batches), batches[0]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dead", [0.0, 1e-6])
def test_outputs_are_those_of_the_float_layer(op, dead, preset):
    graph, found, feeds = calibrated(op, dead, preset)
    quantized = convert(found)
    (name,) = graph.outputs
    real, got = (Session(g).run(feeds)[name] for g in (graph, quantized))
    step = float(quantized.values[f"{name}.q"].qparams.scale[0])
    bound = step + 0.1  # the weights' own rounding
    assert np.abs(got - real).max() < bound < 1.5
    warned = [text for text in found.warnings if "bias" in text]
    per_tensor = preset == "qnnpack"  # one scale, that of the other channels
    assert len(warned) == (0 if per_tensor else 1)
    if warned:
        assert warned[0].startswith("layer 'layer': 2 of" if op != "conv_transpose2d" else "layer 'layer': 1 of 2")


def test_one_scale_for_all_channels():
    rng = np.random.default_rng(0)
    b = Builder("net")
    weight = rng.uniform(-1e-7, 1e-7, (4, 5)).astype(np.float32)
    inputs = [b.input("x", ("N", 5)), b.param("layer.weight", weight), b.param("layer.bias", BIASES)]
    graph = b.finish([b.node("linear", inputs, "layer")])
    feeds = {"x": rng.uniform(-1, 1, (4, 5)).astype(np.float32)}
    options = PrepareOptions(Mode.STATIC, Backend.QNNPACK)
    found = calibrate(prepare(graph, [Rule("", get_preset("qnnpack"))], options), [feeds])
    real, got = (Session(g).run(feeds)[graph.outputs[0]] for g in (graph, convert(found)))
    assert np.abs(real - got).max() < float(found.activations[graph.outputs[0]].scale[0])
    assert any("1 of 1 weight scales" in text for text in found.warnings)


@pytest.mark.parametrize(("backend", "dead"), [("qnnpack", 1e-3), ("fbgemm", 0.0), ("onednn", 1e-6)])
def test_scales_are_the_observer_s_where_biases_fit(backend, dead):
    """1e-3 is small, but large enough for 32 bits; other backends add biases as floats."""
    graph, found, _ = calibrated("conv2d", dead, "accurate", backend)
    weight = graph.initializers["layer.weight"]
    expected = np.maximum(np.abs(weight).reshape(4, -1).max(axis=1) / np.float32(127.5), np.float32(2.0**-23))
    np.testing.assert_array_equal(found.weights["layer.weight"].scale, expected)
    assert not any("bias" in text for text in found.warnings)
