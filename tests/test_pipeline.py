"""From a recipe to a file and a report, end to end on a small model that really tells classes apart."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_cases import RECIPE, arrays, listing, mlp, trained, workspace

import qtool
from qtool.analysis.evaluate import EngineOptions
from qtool.engine import reference
from qtool.errors import DataError, ModelError, OutputError, QuantizationError, RecipeError
from qtool.ir import Graph
from qtool.ir.files import check_writable
from qtool.ir.npz import file_bytes, load, save
from qtool.ops import Builder
from qtool.pipeline import check_recipe, load_model, quantize_recipe
from qtool.quantize.data import fingerprint
from qtool.recipe.load import load_recipe
from qtool.report.provenance import recorded_calibration
from qtool.report.text import report_json
from qtool.report.types import Report

TEST = {"x": arrays()["test_x"]}
LATENCY = "latency: {seconds: 0.001, warmup: 0}\n"


@contextmanager
def quiet(label: str, total: int | None = None):
    yield lambda done: None  # noqa: ARG005 (nobody looks)


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path, monkeypatch):
    """What --set names is relative to the current folder."""
    monkeypatch.chdir(tmp_path)


def run(folder: Path, recipe: str = RECIPE, *overrides: str, graph: Graph | None = None) -> tuple[Report, Graph]:
    """The report, and the quantized graph as it was written."""
    path = workspace(folder, recipe, graph)
    report = quantize_recipe(load_recipe(path, overrides), quiet)
    return report, load(report.output)


def accuracy(graph: Graph) -> float:
    scores = qtool.Session(graph).run(TEST)[graph.outputs[0]]
    return float(np.mean(scores.argmax(axis=1) == arrays()["test_y"]))


# ------------------------------------------------------------------------------------------------------------ the whole


@pytest.mark.parametrize("backend", ["fbgemm", "x86", "onednn", "qnnpack"])
def test_static_quantization_end_to_end(tmp_path, backend):
    report, graph = run(tmp_path, RECIPE.replace("fbgemm", backend) + LATENCY)
    assert (report.mode, report.backend, graph.backend) == ("static", backend, backend)
    assert report.accuracy.float == 1.0
    assert report.accuracy.quant == accuracy(graph) >= 0.97
    assert report.accuracy.n == 32
    assert report.accuracy.drop == report.accuracy.float - report.accuracy.quant
    assert report.size.quant_bytes == Path(report.output).stat().st_size < report.size.float_bytes
    assert report.size.float_bytes == (tmp_path / "float.npz").stat().st_size
    assert report.latency.float_ms > 0
    assert report.latency.quant_ms > 0
    assert report.fallbacks == report.warnings == ()
    assert {layer.precision for layer in report.layers} == {"int8"}
    quantized = [node for node in graph.nodes if node.op in ("conv2d", "linear")]
    assert len(quantized) == 4
    assert all(graph.values[node.outputs[0]].qparams for node in quantized)
    if backend == "onednn":  # the residual is added before the one rounding
        assert not any(node.op == "add" for node in graph.nodes)
    single = qtool.Session(graph, engine="reference").run(TEST)
    for name, array in qtool.Session(graph).run(TEST).items():
        np.testing.assert_array_equal(array, single[name])


def test_layers_of_the_report_are_those_of_the_graph(tmp_path):
    report, graph = run(tmp_path)
    made = {node.name: node for node in graph.nodes}
    for layer in report.layers:
        qparams = graph.values[made[layer.name].outputs[0]].qparams
        assert (layer.scale, layer.zero_point) == (float(qparams.scale[0]), int(qparams.zero_point[0]))
        assert layer.low <= layer.high
        assert layer.op == made[layer.name].op
    weights = {layer.name: layer for layer in report.layers if layer.weight_bytes}
    assert {name: layer.weight_bytes for name, layer in weights.items()} == {
        "conv1": 16 * 27,
        "block.conv2": 16 * 144,
        "dw": 16 * 9,
        "fc": 64,
    }
    assert all(layer.sqnr_db > 35 for layer in weights.values())


def test_debug_gives_the_bits_of_int8(tmp_path):
    _, graph = run(tmp_path)
    report, debug = run(tmp_path, RECIPE, "debug=true", "output=debug.npz")
    assert any(node.op == "dequantize" for node in debug.nodes)
    assert debug.initializers["conv1.weight"].dtype == np.float32
    assert report.size.quant_bytes > file_bytes(graph)
    expected = qtool.Session(graph).run(TEST)["fc"]
    np.testing.assert_array_equal(qtool.Session(debug).run(TEST)["fc"], expected)
    close = reference.run(debug, TEST)["fc"]  # float operators between the borders: all but the last bits
    assert np.abs(close - expected).max() <= 2.01 * graph.values["fc.q"].qparams.scale[0]


def test_dynamic_quantization_needs_no_data(tmp_path):
    recipe = "model: float.npz\noutput: quant.npz\nmode: dynamic\n" + LATENCY
    report, graph = run(tmp_path, recipe, graph=mlp())
    assert [layer.precision for layer in report.layers] == ["int8 dynamic", "int8 dynamic"]
    assert [node.op for node in graph.nodes] == ["linear_dynamic", "linear_dynamic"]
    assert report.accuracy is None
    x = {"x": np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)}
    expected = reference.run(mlp(), x)["fc2"]
    got = qtool.Session(graph).run(x)["fc2"]
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert report.provenance["calibration"] is None


def test_mixed_precision_by_rules(tmp_path):
    rules = 'qconfig_dict={"": fbgemm, "type:linear": qnnpack, "block": accurate, "re:d.$": null}'
    report, graph = run(tmp_path, RECIPE, rules)
    assert {row.key: row.matched for row in report.rules} == {"": 6, "type:linear": 1, "block": 4, "re:d.$": 1}
    left, *behind = report.fallbacks
    assert (left.name, left.reason) == ("dw", "the rule 're:d.$' leaves it in float")
    assert [(row.name, row.reason) for row in behind] == [
        (name, "it only moves values, and they come in float") for name in ("relu6", "pool", "flatten")
    ]
    nodes = {node.name: node for node in graph.nodes}
    assert graph.values[nodes["dw"].outputs[0]].qparams is None
    assert graph.values[nodes["fc"].inputs[1]].qparams.axis is None
    assert graph.values[nodes["block.conv2"].inputs[1]].qparams.axis == 0
    assert len(nodes["block.conv2"].inputs) == 4  # accurate: the residual is part of it
    assert accuracy(graph) >= 0.97


EAGER = """\
fuse: [[conv1, bn1, relu1], [block.conv2, block.bn2], [block.add, block.relu2]]
stubs: {quant: [x], dequant: [pool]}
"""


def test_eager_style_is_what_it_says(tmp_path):
    report, graph = run(tmp_path, RECIPE + EAGER)
    assert [(row.name, row.reason) for row in report.fallbacks] == [
        ("flatten", "outside of the stubs"),
        ("fc", "outside of the stubs"),
    ]
    assert next(node for node in graph.nodes if node.name == "fc").op == "linear"
    _, automatic = run(tmp_path, RECIPE)
    for name in ("conv1.weight.q", "block.conv2.weight.q", "dw.weight.q"):
        np.testing.assert_array_equal(graph.initializers[name], automatic.initializers[name])
    assert accuracy(graph) >= 0.97


def test_without_fusion_batch_norm_stays_in_float(tmp_path):
    report, graph = run(tmp_path, RECIPE, "fuse=none")
    assert {row.op for row in report.fallbacks} == {"batch_norm", "relu"}  # a relu goes with what it reads
    assert accuracy(graph) >= 0.97


# ----------------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("gates", "passed"),
    [
        ("max_accuracy_drop: 0.05", True),
        ("min_size_ratio: 1.5", True),
        ("min_size_ratio: 50", False),
        ("min_speedup: 1000000", False),
        ("max_accuracy_drop: 0.05, min_size_ratio: 50", False),
    ],
)
def test_gates(tmp_path, gates, passed):
    report, _ = run(tmp_path, RECIPE + LATENCY + f"gates: {{{gates}}}\n")
    assert report.passed is passed
    assert [gate.name for gate in report.gates] == [part.split(":")[0] for part in gates.split(", ")]
    values = {
        "max_accuracy_drop": report.accuracy.drop,
        "min_size_ratio": report.size.ratio,
        "min_speedup": report.latency.speedup,
    }
    assert all(gate.value == values[gate.name] for gate in report.gates)


def test_the_report_file_is_the_report(tmp_path):
    report, _ = run(tmp_path, RECIPE + "report: {json: report.json}\n")
    text = (tmp_path / "report.json").read_text()
    assert text == report_json(report)
    plain = json.loads(text)
    assert plain["schema"] == "qtool.report/1"
    assert plain["size"]["ratio"] == report.size.ratio


def test_infinities_become_null_in_json(tmp_path):
    report, _ = run(tmp_path)
    odd = replace(report, layers=(replace(report.layers[0], sqnr_db=float("inf"), low=float("nan")),))
    layer = json.loads(report_json(odd))["layers"][0]
    assert (layer["sqnr_db"], layer["low"]) == (None, None)


def test_warnings_name_the_layer(tmp_path):
    held = trained().initializers
    dead = {"bn1.weight": np.zeros(16, np.float32), "bn1.bias": np.full(16, -1.0, np.float32)}
    report, _ = run(tmp_path, graph=replace(trained(), initializers={**held, **dead}))
    assert any("relu1" in text and "zero or constant" in text for text in report.warnings)
    assert any("conv1.weight" in text for text in report.warnings)


def test_a_report_of_much_loss_says_what_to_change(tmp_path):
    factor = np.where(np.arange(16) % 4, 1.0, 3000.0).astype(np.float32)
    held = trained().initializers
    uneven = {**held, **{name: held[name] * factor for name in ("bn1.weight", "bn1.bias")}}
    uneven["block.conv2.weight"] = held["block.conv2.weight"] / factor[None, :, None, None]  # undone where it is read
    nodes = [replace(n, inputs=n.inputs[:1] * 2) if n.op == "add" else n for n in trained().nodes]
    graph = replace(trained(), initializers=uneven, nodes=tuple(nodes))
    labels = qtool.Session(graph).run(TEST)["fc"].argmax(axis=1)
    path = workspace(tmp_path, RECIPE.replace("fbgemm", "qnnpack"), graph, test_y=labels)
    report = quantize_recipe(load_recipe(path), quiet)
    assert report.accuracy.drop > 0.1
    assert any("conv1" in item.layers for item in report.advice)
    assert json.loads(report_json(report))["advice"][0]["qconfig_dict"]
    report, _ = run(tmp_path)
    assert report.advice == ()


def test_an_operator_without_int8_is_a_fallback_with_a_reason(tmp_path):
    b = Builder("odd")
    x = b.input("x", ("N", 3, 8, 8))
    with b.scope("fc"):
        weight = np.random.default_rng(0).standard_normal((4, 192)).astype(np.float32)
        y = b.node("linear", [b.node("flatten", [x], name="flat"), b.param("weight", weight)])
    report, graph = run(tmp_path, graph=b.finish([b.node("softmax", [y], name="out", dim=1)]))
    assert [layer.precision for layer in report.layers if layer.name == "fc"] == ["int8"]
    for fallback in report.fallbacks:
        assert fallback.reason
        assert graph.values[next(n for n in graph.nodes if n.name == fallback.name).outputs[0]].qparams is None


# ----------------------------------------------------------------------------------------------------------- provenance


def test_the_file_records_where_it_came_from(tmp_path):
    report, graph = run(tmp_path, RECIPE, "calibration.batches=1")
    assert graph.meta["recipe"]["backend"] == "fbgemm"
    assert graph.meta["recipe"]["qconfig_dict"][""]["activation"]["observer"] == "histogram"
    used = graph.meta["calibration"]
    assert used["sha256"] == fingerprint([{"x": arrays()["calib_x"][:16]}])
    assert (used["samples"], used["data"]) == (16, "data.npz")
    assert report.provenance["calibration"] == used
    config = recorded_calibration(graph, tmp_path / "quant.npz")
    assert (config.data, config.split, config.batch_size) == (tmp_path / "data.npz", "calib", 16)


def test_recorded_data_are_found_where_file_and_data_moved_together(tmp_path):
    (tmp_path / "a" / "out").mkdir(parents=True)
    _, graph = run(tmp_path / "a", RECIPE, f"output={tmp_path / 'a' / 'out' / 'quant.npz'}")
    assert graph.meta["calibration"]["data"] == "../data.npz"
    (tmp_path / "a").rename(tmp_path / "b")
    assert recorded_calibration(graph, tmp_path / "b" / "out" / "quant.npz").data.exists()
    assert recorded_calibration(graph, tmp_path / "elsewhere.npz") is None


HOSTILE = [
    {},
    {"calibration": None},
    {"calibration": {"data": 3}},
    {"calibration": {"data": "\0"}},
    {"calibration": {"data": "x" * 5000}},
    {"calibration": {"data": "data.npz"}, "recipe": {"calibration": {"split": 3}}},
    {"calibration": {"data": "data.npz"}, "recipe": {"calibration": {"batch_size": -1}}},
    {"calibration": {"data": "data.npz"}, "recipe": {"calibration": {"batch_size": True}}},
    {"calibration": {"data": "data.npz"}, "recipe": {"calibration": {"preprocess": {"mean": [1, 2]}}}},
    {"calibration": {"data": "data.npz"}, "recipe": {"calibration": {"preprocess": {"crop": "all"}}}},
    {"calibration": {"data": "data.npz"}, "recipe": {"calibration": {"preprocess": {"std": "abc"}}}},
]


@pytest.mark.parametrize("meta", HOSTILE, ids=str)
def test_whatever_a_file_records_does_no_harm(tmp_path, meta):
    (tmp_path / "data.npz").touch()
    assert recorded_calibration(replace(trained(), meta=meta), tmp_path / "quant.npz") is None


def test_pictures_are_recorded_with_their_preprocessing(tmp_path):
    (tmp_path / "pictures").mkdir()
    calibration = {"split": "", "preprocess": {"resize": 9, "crop": 8, "mean": [0.5, 0.5, 0.5]}}
    meta = {"calibration": {"data": "pictures"}, "recipe": {"calibration": calibration}}
    config = recorded_calibration(replace(trained(), meta=meta), tmp_path / "quant.npz")
    assert (config.preprocess.crop, config.preprocess.mean, config.preprocess.std) == (8, (0.5, 0.5, 0.5), (1,))


# ------------------------------------------------------------------------------------------------------------ the order


def test_nothing_is_written_before_everything_is_measured(tmp_path, monkeypatch):
    path = workspace(tmp_path, RECIPE + "report: {json: report.json}\n")
    before = listing(tmp_path)

    def stop(*args: object) -> None:
        assert listing(tmp_path) == before
        raise KeyboardInterrupt

    monkeypatch.setattr("qtool.pipeline.measure.measure_accuracy", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_recipe(load_recipe(path), quiet)
    assert listing(tmp_path) == before


def test_stages_are_told_how_far_they_are(tmp_path):
    told: dict[str, tuple[int | None, list[int]]] = {}

    @contextmanager
    def stage(label: str, total: int | None = None):
        told[label] = (total, [])
        yield told[label][1].append

    quantize_recipe(load_recipe(workspace(tmp_path, RECIPE + LATENCY)), stage)
    assert list(told) == ["calibrate", "evaluate", "time"]
    assert told["calibrate"] == (32, [16, 32])
    assert told["evaluate"] == (32, [16, 32])
    assert told["time"][0] == 100


def test_threads_do_not_change_the_result(tmp_path):
    files = []
    for threads in (1, 2):
        quantize_recipe(load_recipe(workspace(tmp_path)), quiet, EngineOptions(threads))
        files.append((tmp_path / "quant.npz").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (["mode=qat"], RecipeError, "qat"),
        (["model=data.npz"], ModelError, "not a qtool model"),
        (["calibration.data=x.npz"], DataError, "x.npz"),
        (["output=nowhere/q.npz"], OutputError, "nowhere"),
        (["output=data.npz"], RecipeError, "overwritten"),
        (["evaluation.split=none"], DataError, "none"),
        (["qconfig_dict={nowhere: null, '': fbgemm}"], RecipeError, "nowhere"),
        (["qconfig_dict={'type:relu': fbgemm}", "fuse=none"], QuantizationError, "nothing"),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else None,
)
def test_what_can_be_known_is_known_before_the_work(tmp_path, overrides, error, told):
    path = workspace(tmp_path)
    with pytest.raises(error, match=told):
        check_recipe(load_recipe(path, overrides))


def test_models_are_checked_when_they_are_loaded(tmp_path):
    graph = trained()
    wrong = replace(graph.values["fc"], shape=("N", 5))
    save(replace(graph, values={**graph.values, "fc": wrong}), tmp_path / "wrong.npz")
    with pytest.raises(ModelError, match=r"wrong\.npz: "):
        load_model(tmp_path / "wrong.npz")


# ---------------------------------------------------------------------------------------------------------------- files


def test_the_size_of_a_file_is_known_without_writing_it(tmp_path):
    for graph in (trained(), mlp(), run(tmp_path)[1]):
        save(graph, tmp_path / "x.npz")
        assert file_bytes(graph) == (tmp_path / "x.npz").stat().st_size


def test_asking_whether_a_file_can_be_written_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "x.npz")
    (tmp_path / "old.npz").write_bytes(b"old")
    check_writable(tmp_path / "old.npz")
    assert listing(tmp_path) == {"old.npz": b"old"}
    for path in (tmp_path, tmp_path / "no" / "x.npz", Path("/dev/null"), tmp_path / "old.npz" / "x.npz"):
        with pytest.raises(OutputError, match="cannot write"):
            check_writable(path)
