"""LSTM, GRU and RNN with activations quantized at run time; tests/peers has PyTorch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import qtool
from qtool.engine import reference
from qtool.engine.dynamic import linear_dynamic, quantize_rows
from qtool.engine.requantize import arithmetic_of
from qtool.errors import DataError, QuantizationError
from qtool.ir import DType, Graph, Value
from qtool.ir.npz import load, save
from qtool.ops.builder import Builder
from qtool.ops.check import check_types
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_default_dynamic_qconfig, get_preset
from qtool.recipe.schema import Backend, Mode

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
DYNAMIC = get_default_dynamic_qconfig()
STEPS, BATCH, INPUTS, HIDDEN = 12, 3, 10, 8


def layer(kind: str, direction: str = "forward", seed: int = 0, states: bool = False, **attrs) -> Graph:
    """One recurrent layer; all its outputs are outputs of the graph."""
    rng = np.random.default_rng(seed)
    directions = 2 if direction == "bidirectional" else 1
    b, gates = Builder(kind), GATES[kind] * HIDDEN
    shape = ("N", STEPS, INPUTS) if attrs.get("layout") else (STEPS, "N", INPUTS)
    count = 2 if kind == "lstm" else 1
    inputs = [b.input("x", shape)]
    with b.scope("rnn"):
        for name, size in (("w", (directions, gates, INPUTS)), ("r", (directions, gates, HIDDEN))):
            inputs.append(b.param(name, rng.uniform(-0.6, 0.6, size).astype(np.float32)))
        inputs += [b.param("b", rng.normal(size=(directions, 2 * gates)).astype(np.float32)), ""]
        state = ("N", directions, HIDDEN) if attrs.get("layout") else (directions, "N", HIDDEN)
        inputs += [b.input(f"s{k}", state) if states else "" for k in range(count)]
        if "p" in attrs:
            inputs.append(b.param("p", attrs.pop("p")))
        attrs |= {"hidden_size": HIDDEN, "direction": direction}
        outputs = b.nodes(kind, inputs, count + 1, **attrs)
    return b.finish(outputs)


def quantized(graph: Graph, backend: Backend = Backend.FBGEMM, qconfig=DYNAMIC, debug: bool = False) -> Graph:
    options = PrepareOptions(Mode.DYNAMIC, backend)
    return qtool.quantize(graph, {"": qconfig}, options=options, debug=debug).graph


def feeds_of(graph: Graph, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {name: [BATCH if dim == "N" else dim for dim in graph.values[name].shape] for name in graph.inputs}
    return {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_linears(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The forward layer written down once more: linear_dynamic layers on floats, gates i, o, f, c."""
    node = graph.nodes[0]
    w, r = ((graph.initializers[name][0], replace(graph.values[name].qparams, axis=None)) for name in node.inputs[1:3])
    bias = np.split(graph.initializers[node.inputs[3]][0], 2)
    arithmetic, flags = arithmetic_of(graph.backend), (node.attrs["reduce_range"], node.attrs.get("row_wise", False))
    gates_x = linear_dynamic(arithmetic, quantize_rows(x.reshape(-1, INPUTS), *flags), w, bias[0])
    gates_x = gates_x.reshape(len(x), -1, 4 * HIDDEN)
    h = c = np.zeros((x.shape[1], HIDDEN), np.float32)
    found = []
    for step in gates_x:
        i, o, f, g = np.split(step + linear_dynamic(arithmetic, quantize_rows(h, *flags), r, bias[1]), 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return np.stack(found)


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("row_wise", [False, True])
def test_lstm_is_made_of_dynamic_linear_layers(backend, row_wise):
    activation = replace(DYNAMIC.activation, options={"row_wise": row_wise})
    graph = quantized(layer("lstm"), Backend(backend), replace(DYNAMIC, activation=activation))
    feeds = feeds_of(graph)
    got = next(iter(qtool.Session(graph).run(feeds).values()))[:, 0]
    np.testing.assert_allclose(got[0], lstm_by_linears(graph, feeds["x"])[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(got, lstm_by_linears(graph, feeds["x"]), rtol=0, atol=2e-3)


VARIANTS = [
    ("lstm", {}),
    ("lstm", {"direction": "reverse", "states": True}),
    ("lstm", {"direction": "bidirectional", "layout": 1, "states": True}),
    ("lstm", {"input_forget": True, "clip": 0.7}),
    ("lstm", {"p": np.linspace(-1, 1, 3 * HIDDEN, dtype=np.float32)[None], "states": True}),
    ("lstm", {"activations": ("HardSigmoid", "Softsign", "Tanh"), "activation_alpha": (0.3,)}),
    ("gru", {"linear_before_reset": True, "direction": "bidirectional", "states": True}),
    ("gru", {"linear_before_reset": False, "states": True, "layout": 1}),
    ("rnn", {"direction": "bidirectional", "states": True}),
    ("rnn", {"activations": ("Relu",), "states": True}),
]


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_every_variant_is_near_the_float_layer(kind, options, backend):
    graph = layer(kind, **options)
    quant = quantized(graph, Backend(backend))
    check_types(quant)
    assert [node.op for node in quant.nodes] == [f"{kind}_dynamic"]
    feeds = feeds_of(graph)
    real, got = (list(reference.run(g, feeds).values()) for g in (graph, quant))
    for a, b in zip(real, got, strict=True):
        assert a.shape == b.shape
        assert 0 < np.linalg.norm(a - b) < 0.04 * np.linalg.norm(a)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_debug_graph_gives_the_same_bits_and_files_hold_both(kind, tmp_path):
    results = []
    for debug in (False, True):
        path = tmp_path / f"{debug}.npz"
        save(quantized(layer(kind, "bidirectional"), debug=debug), path)
        results.append(qtool.Session(load(path)).run(feeds_of(load(path))))
    for name, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][name])
    stored = load(tmp_path / "False.npz")
    assert {array.dtype.name for name, array in stored.initializers.items() if name.endswith(".q")} == {"int8"}
    assert not {"rnn.w", "rnn.r"} & set(stored.initializers)


def test_each_direction_has_a_scale_of_its_own_or_each_row():
    graph = layer("gru", "bidirectional")
    w = graph.initializers["rnn.w"]
    w[1] *= 10
    per_tensor = quantized(graph).values["rnn.w.q"].qparams
    assert (per_tensor.axis, per_tensor.scale.shape) == (0, (2,))
    np.testing.assert_array_equal(per_tensor.scale, np.abs(w).max(axis=(1, 2)) / np.float32(127.5))
    rows = quantized(graph, qconfig=get_default_dynamic_qconfig(per_channel=True)).values["rnn.w.q"].qparams
    assert (rows.axis, rows.scale.shape) == (1, (3 * HIDDEN,))
    np.testing.assert_array_equal(rows.scale, np.abs(w).max(axis=(0, 2)) / np.float32(127.5))


def test_a_scale_a_row_is_nearer_to_float():
    graph = layer("lstm")
    graph.initializers["rnn.w"][0, :HIDDEN] *= 20
    feeds, errors = feeds_of(graph), []
    for per_channel in (False, True):
        got = reference.run(quantized(graph, qconfig=get_default_dynamic_qconfig(per_channel)), feeds)
        errors.append(np.linalg.norm(next(iter(got.values())) - next(iter(reference.run(graph, feeds).values()))))
    assert errors[1] < errors[0]


def test_row_wise_samples_do_not_see_each_other():
    activation = replace(DYNAMIC.activation, options={"row_wise": True})
    graph = quantized(layer("lstm"), qconfig=replace(DYNAMIC, activation=activation))
    x = feeds_of(graph)["x"]
    alone = reference.run(graph, {"x": x[:, :1]})
    together = reference.run(graph, {"x": x * np.array([1, 30, 1], np.float32)[:, None]})
    for name, array in alone.items():
        np.testing.assert_array_equal(together[name][..., :1, :], array)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_what_lies_behind_a_sequence_has_no_part(direction):
    base = layer("gru", direction)
    node = base.nodes[0]
    graph = replace(
        base,
        inputs=("x", "lengths"),
        values={**base.values, "lengths": Value("lengths", DType.INT64, ("N",))},
        nodes=(replace(node, inputs=(*node.inputs[:4], "lengths")),),
    )
    graph = quantized(graph)
    x, lengths = feeds_of(base)["x"], np.array([12, 5, 0])
    first = reference.run(graph, {"x": x, "lengths": lengths})
    noisy = np.where(np.arange(STEPS)[:, None, None] < lengths[:, None], x, np.float32(1e5))
    second = reference.run(graph, {"x": noisy, "lengths": lengths})
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    y, last = first.values()
    assert not y[5:, :, 1].any()
    assert not y[:, :, 2].any()
    assert not last[:, 2].any()
    np.testing.assert_array_equal(last[0], y[0 if direction == "reverse" else lengths - 1, 0, np.arange(BATCH)])


def test_lengths_beyond_the_steps_are_refused():
    graph = quantized(layer("gru"))
    node = replace(graph.nodes[0], inputs=(*graph.nodes[0].inputs[:4], "lengths"))
    values = {**graph.values, "lengths": Value("lengths", DType.INT64, ("N",))}
    graph = replace(graph, nodes=(node,), inputs=("x", "lengths"), values=values)
    with pytest.raises(DataError, match="sequence lengths from 1 to 13"):
        reference.run(graph, {"x": feeds_of(layer("gru"))["x"], "lengths": np.array([1, 13, 2])})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_named(bad):
    graph = quantized(layer("rnn"))
    feeds = feeds_of(graph)
    feeds["x"][3, 1, 2] = bad
    with pytest.raises(DataError, match=r"rnn_dynamic 'rnn': .*NaN or infinity"):
        reference.run(graph, feeds)
    graph = layer("rnn")
    graph.initializers["rnn.r"][0, 0, 0] = bad
    with pytest.raises(QuantizationError, match=r"'rnn\.r' of rnn 'rnn': 1 of 64 numbers are NaN"):
        quantized(graph)


def test_a_dynamic_lstm_between_static_layers():
    rng = np.random.default_rng(0)
    b = Builder("mixed")
    x = b.input("x", (STEPS, "N", INPUTS))
    x = b.node("linear", [x, b.param("fc1.w", rng.normal(size=(INPUTS, INPUTS)).astype(np.float32))], "fc1")
    sizes = {"lstm.w": INPUTS, "lstm.r": HIDDEN}
    weights = [b.param(n, rng.uniform(-1, 1, (1, 32, size)).astype(np.float32)) for n, size in sizes.items()]
    x = b.nodes("lstm", [x, *weights], 3, "lstm", hidden_size=HIDDEN)[0]
    x = b.node("squeeze", [x], "squeeze", dim=(1,))
    x = b.node("linear", [x, b.param("fc2.w", rng.normal(size=(4, HIDDEN)).astype(np.float32))], "fc2")
    graph = b.finish([x])
    batches = [feeds_of(graph, seed) for seed in range(3)]
    rules = {"": get_preset("fbgemm"), "type:lstm": DYNAMIC}
    result = qtool.quantize(graph, rules, batches)
    check_types(result.graph)
    ops = [node.op for node in result.graph.nodes]
    assert ops.count("linear") == 2
    assert ops.count("lstm_dynamic") == 1
    debug = qtool.quantize(graph, rules, batches, debug=True).graph
    got, again, real = (qtool.Session(g).run(batches[0])["fc2"] for g in (result.graph, debug, graph))
    np.testing.assert_array_equal(got, again)
    assert np.linalg.norm(got - real) < 0.1 * np.linalg.norm(real)


def test_compare_and_inspect_know_the_layer():
    graph = layer("lstm")
    rows = qtool.compare(graph, quantized(graph), [feeds_of(graph)])
    assert [row.layer for row in rows.weights] == ["rnn"]
    assert rows.weights[0].sqnr_db > 30
