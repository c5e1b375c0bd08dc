"""A model in training: its derivatives, its fake quantization, and that conversion keeps its numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from qat_cases import make_model, observed, pictures, small_net
from random_graphs import RandomGraph

from qtool import native
from qtool.engine.session import Session
from qtool.errors import QtoolError, QuantizationError
from qtool.ir import Array
from qtool.ops import Builder
from qtool.passes import fuse
from qtool.quantize.convert import convert
from qtool.quantize.prepare import PrepareOptions
from qtool.quantize.qat import snapshot
from qtool.quantize.qat.convert import calibrated_of, float_graph
from qtool.quantize.qat.layers import Phase
from qtool.quantize.qat.losses import cross_entropy
from qtool.quantize.qat.model import ModelOptions, QatModel
from qtool.quantize.qat.native_operators import make_operators
from qtool.quantize.qat.operators import Operators
from qtool.quantize.qat.prepare import prepare_qat, unfused
from qtool.recipe.presets import get_default_qat_qconfig, get_preset
from qtool.recipe.schema import Backend, Mode, ObserverConfig, Rule

BACKENDS = [backend.value for backend in Backend]
EVALUATION = Phase(training=False, freeze_bn=True, observe=False, fake_quant=True)
EXACT = replace(EVALUATION, exact=True)
FLOAT = Phase(training=True, freeze_bn=False, observe=False, fake_quant=False)


def step(model: QatModel, phase: Phase, seed: int = 0) -> tuple[float, dict[str, Array]]:
    x, labels = pictures(16, seed)
    output = model.graph.outputs[0]
    loss, gradient = cross_entropy(model.forward({"x": x}, phase)[output], labels)
    return loss, model.backward({output: gradient})


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_derivatives_are_differences_of_the_loss(freeze_bn: bool) -> None:
    model = make_model(small_net())
    phase = replace(FLOAT, freeze_bn=freeze_bn)
    statistics = {name: array.copy() for name, array in model.state.statistics.items()}
    _, gradients = step(model, phase)
    assert gradients.keys() == model.parameters.keys()
    rng = np.random.default_rng(3)
    for name, gradient in gradients.items():
        way = rng.normal(size=gradient.shape).astype(np.float32)
        size = 2e-2 / np.linalg.norm(way)
        losses = []
        for sign in (1, -1):
            for known, array in statistics.items():
                model.state.statistics[known][...] = array
            model.parameters[name] += np.float32(sign * size) * way
            losses.append(step(model, phase)[0])
            model.parameters[name] -= np.float32(sign * size) * way
        expected = (losses[0] - losses[1]) / (2 * size)
        got = float((gradient * way).sum())
        assert got == pytest.approx(expected, abs=2e-2 * max(1.0, abs(expected))), name


@pytest.mark.skipif(not native.available(), reason="the native library is not there")
@pytest.mark.parametrize(
    "phase", [FLOAT, replace(FLOAT, freeze_bn=True), replace(FLOAT, fake_quant=True, observe=True)]
)
def test_native_kernels_train_as_numpy_does(phase: Phase) -> None:
    models = [make_model(small_net(), operators=operators) for operators in (Operators(), make_operators(2))]
    (first, gradients), (second, others) = (step(model, phase) for model in models)
    assert first == pytest.approx(second, rel=1e-4)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(others[name], gradient, rtol=1e-2, atol=1e-3 * float(np.abs(gradient).max() + 1e-3))


@pytest.mark.skipif(not native.available(), reason="the native library is not there")
def test_threads_change_no_bit() -> None:
    models = [make_model(small_net(), operators=make_operators(threads)) for threads in (1, 2, 3)]
    found = [step(model, replace(FLOAT, fake_quant=True, observe=True)) for model in models]
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, found[0][1][name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_mode_gives_the_bits_of_the_converted_model(backend: str) -> None:
    x, _ = pictures(32)
    model = observed(make_model(small_net(), backend), {"x": x})
    graph = convert(calibrated_of(model, len(x)))
    expected = Session(graph).run({"x": x})[graph.outputs[0]]
    np.testing.assert_array_equal(model.forward({"x": x}, EXACT)[graph.outputs[0]], expected)


@pytest.mark.parametrize("seed", range(12))
def test_exact_mode_gives_the_bits_of_random_graphs(seed: int) -> None:
    made = RandomGraph(seed, quantized=False)
    graph, feeds = made.graph, made.feeds()
    backend = BACKENDS[seed % len(BACKENDS)]
    try:
        model = make_model(graph, backend)
    except QuantizationError as error:
        pytest.skip(f"nothing to quantize: {error}")
    observed(model, feeds)
    converted = convert(calibrated_of(model, 1))
    expected, got = Session(converted).run(feeds), model.forward(feeds, EXACT)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_single_rounding_is_exact_too() -> None:
    x, _ = pictures(32)
    qconfig = replace(get_preset("qnnpack_qat"), single_rounding=True)
    model = observed(make_model(small_net(), "qnnpack", qconfig), {"x": x})
    assert any(node.attrs.get("activation") == "clamp" for node in model.graph.nodes), "relu6 is not fused"
    graph = convert(calibrated_of(model, len(x)))
    expected = Session(graph).run({"x": x})[graph.outputs[0]]
    np.testing.assert_array_equal(model.forward({"x": x}, EXACT)[graph.outputs[0]], expected)


def test_weights_of_four_bits_stay_within_them() -> None:
    x, _ = pictures(32)
    weight = replace(get_preset("onednn_qat").weight, quant_min=-8, quant_max=7)
    model = observed(make_model(small_net(), "onednn", replace(get_preset("onednn_qat"), weight=weight)), {"x": x})
    graph = convert(calibrated_of(model, len(x)))
    stored = [a for n, a in graph.initializers.items() if a.dtype == np.int8]
    assert stored
    assert {int(a.min()) for a in stored} == {-8} or min(int(a.min()) for a in stored) >= -8
    assert max(int(a.max()) for a in stored) == 7
    expected = Session(graph).run({"x": x})[graph.outputs[0]]
    np.testing.assert_array_equal(model.forward({"x": x}, EXACT)[graph.outputs[0]], expected)


def test_running_statistics_and_parameters_go_into_the_float_graph() -> None:
    graph = small_net()
    model = make_model(graph)
    x, _ = pictures(32)
    model.forward({"x": x}, replace(FLOAT, fake_quant=False))
    trained = float_graph(model)
    assert not np.array_equal(trained.initializers["first.mean"], graph.initializers["first.mean"])
    frozen = model.forward({"x": x}, replace(FLOAT, training=False, freeze_bn=True))
    got = Session(fuse(trained)).run({"x": x})
    np.testing.assert_allclose(got[graph.outputs[0]], frozen[graph.outputs[0]], rtol=1e-4, atol=1e-5)


def test_training_in_float_has_batch_norms_of_their_own() -> None:
    model = QatModel(unfused(small_net()), Operators())
    loss, gradients = step(model, FLOAT)
    fused, others = step(make_model(small_net()), FLOAT)
    assert loss == pytest.approx(fused, rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(others[name], gradient, rtol=1e-3, atol=1e-5)


def test_layers_that_do_not_train_stay_as_they_are() -> None:
    model = make_model(small_net(), options=ModelOptions(lambda node: node.scope == "head"))
    before = snapshot.take(model)
    _, gradients = step(model, replace(FLOAT, fake_quant=True, observe=True))
    assert set(gradients) == {"head.weight", "head.bias"}
    for name, array in model.state.statistics.items():
        np.testing.assert_array_equal(array, before[f"{snapshot.STATISTIC}/{name}"])


def test_scales_are_learnt_and_kept() -> None:
    model = make_model(small_net(), options=ModelOptions(learn_scales=True))
    phase = replace(FLOAT, fake_quant=True, observe=True)
    step(model, phase)
    _, gradients = step(model, phase)
    scales = [name for name in gradients if name.endswith(":scale")]
    assert len(scales) == len(model.scales) > 4
    before = {name: model.parameters[name].copy() for name in scales}
    for name in scales:
        model.parameters[name] -= np.float32(0.01) * np.sign(gradients[name]) * model.parameters[name]
    model.refresh()
    taken = snapshot.take(model)
    other = make_model(small_net(), options=ModelOptions(learn_scales=True))
    snapshot.put(other, taken)
    x, _ = pictures(32)
    graph = convert(calibrated_of(other, 1))
    np.testing.assert_array_equal(
        Session(graph).run({"x": x})[graph.outputs[0]], model.forward({"x": x}, EXACT)[graph.outputs[0]]
    )
    assert any(not np.array_equal(before[name], other.parameters[name]) for name in scales)


def test_a_state_of_another_model_is_refused() -> None:
    model = make_model(small_net())
    taken = snapshot.take(model)
    taken["parameter/head.weight"] = np.zeros((4, 6), np.float32)
    with pytest.raises(QtoolError, match=r"parameter/head.weight.*expected float32 of shape \(3, 6\)"):
        snapshot.put(model, taken)


def test_observers_that_need_all_data_are_refused() -> None:
    qconfig = replace(get_default_qat_qconfig("qnnpack"), activation=ObserverConfig("histogram"))
    with pytest.raises(QuantizationError, match="'histogram' cannot be used in training; expected min_max"):
        make_model(small_net(), qconfig=qconfig)


def test_a_tensor_that_is_never_reached_has_no_scale() -> None:
    model = make_model(small_net())
    with pytest.raises(QuantizationError, match="the input 'x' was never reached in training"):
        calibrated_of(model, 0)


def test_layers_inside_of_control_flow_are_refused() -> None:
    b = Builder("body")
    x = b.input("x", ("N", 4))
    y = b.node("linear", [x, b.param("w", np.eye(4, dtype=np.float32))], name="fc")
    body = b.finish([y])
    b = Builder("outer")
    x = b.input("x", ("N", 4))
    flag = b.param("flag", np.array(True))
    (out,) = b.nodes("if", [flag, x], 1, name="choice", graphs={"then_branch": body, "else_branch": body})
    rules = [Rule("", get_default_qat_qconfig("qnnpack"))]
    with pytest.raises(QuantizationError, match=r"mode qat cannot train the layers in 'choice[.]then_branch'"):
        prepare_qat(b.finish([out]), rules, PrepareOptions(Mode.QAT, Backend.QNNPACK))


def test_the_layer_without_a_derivative_is_named() -> None:
    b = Builder("m")
    x = b.input("x", ("N", 4))
    with b.scope("first"):
        y = b.node("linear", [x, b.param("weight", np.eye(4, dtype=np.float32))], name="fc")
    with b.scope("steps"):
        y = b.node("hardmax", [y], name="hardmax")
    graph = b.finish([y])
    model = make_model(graph)
    output = model.forward({"x": np.ones((2, 4), np.float32)}, replace(FLOAT, fake_quant=True, observe=True))
    with pytest.raises(QtoolError, match="layer 'steps': hardmax has no derivative"):
        model.backward({graph.outputs[0]: np.ones_like(output[graph.outputs[0]])})
