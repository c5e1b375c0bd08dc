"""What bench, run and eval are made of: turns, random inputs, costs, joined outputs and targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_cases import arrays, mlp, trained, workspace

import qtool
from qtool.analysis.bench import BenchOptions, contenders, profile_operators, quantize_quickly, run_bench, slowest
from qtool.analysis.cost import Cost, cost_of, macs_of
from qtool.analysis.evaluate import EngineOptions, measure_accuracy, open_for_all
from qtool.analysis.inference import read_arrays, run_dataset, summarize, write_outputs
from qtool.analysis.latency import LEAST_ROUNDS, Ratio, Timing, random_feeds, time_interleaved
from qtool.engine.shapes import concrete_shapes
from qtool.errors import DataError
from qtool.ir import DType
from qtool.ops import Builder
from qtool.quantize.data import open_data
from qtool.recipe.schema import Backend, DataConfig, Mode


def single(op: str, shapes: list[tuple], *, params: int = 0, outputs: int = 1, **attrs: object):
    """A graph of one operator; the last ``params`` inputs are constants."""
    b = Builder("one")
    inputs = [b.input(f"x{i}", shape) for i, shape in enumerate(shapes[: len(shapes) - params])]
    inputs += [b.param(f"p{i}", np.ones(s, np.float32)) for i, s in enumerate(shapes[len(shapes) - params :])]
    return b.finish(b.nodes(op, inputs, outputs, name="y", **attrs)[:1])


# ---------------------------------------------------------------------------------------------------------------- turns


def test_contenders_take_turns():
    order: list[str] = []
    timings = time_interleaved([lambda: order.append("a"), lambda: order.append("b")], seconds=0.0, warmup=2)
    assert order == ["a", "b"] * (2 + LEAST_ROUNDS)
    assert [len(timing.seconds) for timing in timings] == [LEAST_ROUNDS] * 2


def test_each_turn_waits_for_the_threads_of_the_one_before(monkeypatch):
    clock = iter(float(n) for n in range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    looks: list[float] = []
    (timing,) = time_interleaved([lambda: looks.append(next(clock))], seconds=0.0, warmup=0, settling=10.0)
    assert np.diff(looks).min() > 10
    assert set(timing.seconds) == {2.0}  # the waiting does not count


def test_turns_go_on_for_the_time_given(monkeypatch):
    clock = iter(float(n) for n in range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))  # every look at it is a second
    told: list[float] = []
    (timing,) = time_interleaved([lambda: None], seconds=60.0, warmup=0, progress=told.append)
    assert len(timing.seconds) == 20  # three looks a round
    assert timing.seconds == (1.0,) * 20
    assert told == sorted(told)
    assert told[-1] <= 1.0


def test_timings_are_summed_up():
    timing = Timing(tuple(float(n) for n in range(1, 12)))
    assert (timing.minimum, timing.median, timing.p90) == (1.0, 6.0, 10.0)


def test_ratios_are_taken_round_by_round():
    """A machine that is twice as slow for half of the time changes no ratio."""
    ours, theirs = Timing((1.0, 1.0, 2.0, 2.0)), Timing((2.0, 2.0, 4.0, 4.0))
    assert Ratio.of(ours, theirs) == Ratio(0.5, 0.5, 0.5, 0.5)
    spread = Ratio.of(Timing(tuple(float(n) for n in range(1, 12))), Timing((1.0,) * 11))
    assert spread == Ratio(1.0, 6.0, 2.0, 10.0)


# --------------------------------------------------------------------------------------------------------------- inputs


def test_random_inputs_fit_the_model_and_repeat():
    b = Builder("many")
    image, tokens = b.input("image", ("N", 3, "H", "W")), b.input("tokens", ("N", "T"), DType.INT64)
    b.input("fixed", (2, 5))
    graph = b.finish([b.node("relu", [image], name="y")])
    assert tokens
    feeds = random_feeds(graph, batch=1)
    assert {name: array.shape for name, array in feeds.items()} == {
        "image": (1, 3, 128, 128),
        "tokens": (1, 128),
        "fixed": (2, 5),
    }
    assert feeds["tokens"].dtype == np.int64
    assert not feeds["tokens"].any()
    np.testing.assert_array_equal(feeds["image"], random_feeds(graph)["image"])
    assert not np.array_equal(feeds["image"], random_feeds(graph, seed=1)["image"])
    with pytest.raises(DataError, match="batches of exactly 2"):
        random_feeds(graph, batch=3)


# ---------------------------------------------------------------------------------------------------------------- costs

COSTS = [
    (single("conv2d", [("N", 6, 8, 8), (4, 3, 3, 3)], params=1, groups=2), 4 * 6 * 6 * 27),
    (single("conv1d", [("N", 6, 8), (4, 6, 3)], params=1, stride=(2,)), 4 * 3 * 18),
    (single("linear", [("N", 7, 5), (3, 5)], params=1), 7 * 3 * 5),
    (single("matmul", [("N", 4, 5), ("N", 5, 6)]), 4 * 5 * 6),
    (single("matmul", [(5,), (5, 6)]), 5 * 6),
    (single("lstm", [(7, "N", 3), (1, 20, 3), (1, 20, 5)], params=2, outputs=3, hidden_size=5), 7 * (20 * 3 + 20 * 5)),
    (
        single(
            "gru", [(7, "N", 3), (2, 15, 3), (2, 15, 5)], params=2, outputs=2, hidden_size=5, direction="bidirectional"
        ),
        7 * 2 * (15 * 3 + 15 * 5),
    ),
    (single("relu", [("N", 5)]), 0),
]


@pytest.mark.parametrize(("graph", "macs"), COSTS, ids=[f"{g.nodes[0].op}-{macs}" for g, macs in COSTS])
@pytest.mark.parametrize("batch", [1, 3])
def test_products_are_counted(graph, macs, batch):
    shapes = concrete_shapes(
        graph, {n: tuple(batch if d == "N" else d for d in graph.values[n].shape) for n in graph.inputs}
    )
    symbolic = "N" in graph.values[graph.inputs[0]].shape  # wherever the batch stands
    assert macs_of(graph.nodes[0], shapes) == macs * (batch if symbolic else 1)


def test_bytes_inside_a_group_are_not_moved():
    b = Builder("two")
    y = b.node("relu", [b.node("add", [b.input("x", (4,)), b.param("p", np.ones(4, np.float32))], name="a")], name="r")
    graph = b.finish([y])
    shapes = concrete_shapes(graph, {"x": (4,)})
    assert cost_of(graph, graph.nodes, shapes) == Cost(0, 3 * 16)  # x, p and the result
    assert cost_of(graph, graph.nodes[:1], shapes) == Cost(0, 3 * 16)
    assert cost_of(graph, graph.nodes[1:], shapes) == Cost(0, 2 * 16)
    assert cost_of(graph.with_outputs(("a", "r")), graph.nodes, shapes) == Cost(0, 4 * 16)


def test_of_a_table_only_the_rows_that_are_asked_for_are_read():
    b = Builder("words")
    ids, table = b.input("ids", ("N", 3), DType.INT64), b.param("table", np.ones((1000, 8), np.float32))
    graph = b.finish([b.node("embedding", [ids, table])])
    shapes = concrete_shapes(graph, {"ids": (2, 3)})
    assert cost_of(graph, graph.nodes, shapes) == Cost(0, 6 * 8 + 6 * 32 + 6 * 32)  # ids, rows, result


# ---------------------------------------------------------------------------------------------------------------- bench


@pytest.mark.parametrize("backend", list(Backend), ids=lambda backend: backend.value)
def test_a_quick_quantization_has_the_arithmetic_of_its_backend(backend):
    graph = quantize_quickly(trained(), backend)
    assert graph.backend == backend.value
    weight = next(graph.values[node.inputs[1]] for node in graph.nodes if node.name == "conv1")
    assert weight.qparams.axis == (None if backend is Backend.QNNPACK else 0)
    again = quantize_quickly(trained(), backend)
    for name, array in graph.initializers.items():
        np.testing.assert_array_equal(array, again.initializers[name])


def test_the_batch_may_be_on_any_axis():
    b = Builder("time first")
    b.input("tokens", (35, "N"), DType.INT64)
    graph = b.finish([b.node("relu", [b.input("x", ("T", "N"))], name="y")])
    feeds = random_feeds(graph, batch=4)
    assert {name: array.shape for name, array in feeds.items()} == {"tokens": (35, 4), "x": (4, 4)}


def test_a_model_is_quantized_in_the_mode_that_it_names():
    b = Builder("fc")
    x = b.input("x", ("N", 6))
    graph = b.finish([b.node("linear", [x, b.param("w", np.eye(5, 6, dtype=np.float32))], name="fc")])

    def ops(meta: dict[str, str], mode: Mode | None = None) -> set[str]:
        ((_, quantized),) = contenders([("f", replace(graph, meta=meta))], Backend.FBGEMM, EngineOptions(), mode)
        return {node.op for node in quantized.graph.nodes}

    static = {"quantize", "linear", "dequantize"}
    assert ops({}) == static
    assert ops({"mode": "dynamic"}) == ops({}, Mode.DYNAMIC) == {"linear_dynamic"}
    assert ops({"mode": "dynamic"}, Mode.STATIC) == static


def test_models_of_one_name_are_run_together():
    quick = quantize_quickly(trained(), Backend.FBGEMM)
    models = [("q.npz", quick), ("f.npz", trained()), ("mlp.npz", mlp())]
    first, second = contenders(models, Backend.QNNPACK, EngineOptions())
    assert [(c.source, c.precision) for c in first] == [("f.npz", "float32"), ("q.npz", "int8")]
    assert [(c.source, c.precision) for c in second] == [("mlp.npz", "float32"), ("quantized here", "int8")]
    assert second[1].graph.backend == "qnnpack"


def test_rows_of_operators_cover_every_layer():
    (group,) = contenders([("f.npz", trained())], Backend.FBGEMM, EngineOptions())
    result = run_bench(group, BenchOptions(seconds=0.001, warmup=0, per_op=True))
    for row, contender in zip(result.rows, group, strict=True):
        named = {name for operator in row.operators for name in operator.layer.split(" + ")}
        heavy = {node.name for node in contender.graph.nodes if node.op in ("conv2d", "linear")}
        assert heavy <= named
        assert row.speedup == pytest.approx(result.rows[0].median_ms / row.median_ms)
    rows = result.rows[0].operators
    assert slowest(rows, 2) == sorted(rows, key=lambda row: -row.ms)[:2]
    assert len(slowest(rows, 0)) == len(rows)


def test_a_profile_keeps_the_least_time_of_its_rounds():
    class Fake:
        graph = trained()
        rounds = iter(
            (
                [("conv1", "a", 3.0), ("fc", "b", 1.0)],
                [("conv1", "a", 1.0), ("fc", "b", 2.0), ("fc", "c", 1.0)],
            )
        )

        def profile(self, feeds):  # noqa: ARG002 (a session's signature)
            return next(self.rounds)

    conv, fc = profile_operators(Fake(), random_feeds(trained()), rounds=2)
    assert (conv.layer, conv.ms, conv.share, conv.kernel) == ("conv1", 1000.0, 0.5, "a")
    assert (fc.ms, fc.kernel) == (1000.0, "b, c")
    assert conv.gops == pytest.approx(2e-9 * 64 * 16 * 27)


# --------------------------------------------------------------------------------------------------------- run and eval


def dataset(folder: Path, graph=None, **config: object):
    workspace(folder, graph=graph)
    return open_data(DataConfig(folder / "data.npz", "test", **config), graph or trained())


def test_outputs_of_batches_are_joined_in_order(tmp_path):
    session = qtool.Session(trained())
    told: list[int] = []
    joined = run_dataset(session, dataset(tmp_path, batch_size=10), told.append)
    whole = session.run({"x": arrays()["test_x"]})["fc"]
    np.testing.assert_allclose(joined["fc"], whole, rtol=1e-4, atol=1e-5)
    assert told == [10, 20, 30, 32]


def test_outputs_without_a_common_axis_are_not_joined(tmp_path):
    b = Builder("sum")
    x = b.input("x", ("N", 3, 8, 8))
    graph = b.finish([b.node("sum", [x], name="total", dim=(0, 1, 2, 3))])
    data = dataset(tmp_path, graph, batch_size=16)
    with pytest.raises(DataError, match="'total' cannot be joined"):
        run_dataset(qtool.Session(graph), data)
    assert run_dataset(qtool.Session(graph), replace(data, batch_size=32))["total"].shape == ()


def test_summaries_of_odd_outputs(tmp_path):
    found = summarize(
        {"a": np.array([1, 3], np.int64), "b": np.array([np.nan, 1.0]), "c": np.zeros((0, 2), np.float32)}
    )
    assert (found[0].low, found[0].high, found[0].mean, found[0].finite) == (1.0, 3.0, 2.0, True)
    assert (found[1].low, found[1].finite) == (None, False)
    assert (found[2].low, found[2].finite, found[2].shape) == (None, True, (0, 2))


def test_written_outputs_can_be_read_by_numpy(tmp_path):
    outputs = {"logits": np.arange(6, dtype=np.float32).reshape(2, 3), "file": np.array(3.0), "a/b": np.array([1])}
    write_outputs(outputs, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as written:
        assert written.files == ["logits", "file", "a/b"]
        np.testing.assert_array_equal(written["logits"], outputs["logits"])
        assert written["file"] == 3.0
    write_outputs({"logits": outputs["logits"]}, tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), outputs["logits"])
    np.testing.assert_array_equal(read_arrays({"x": tmp_path / "out.npy"})["x"], outputs["logits"])


def test_metrics_of_arrays_fall_back_to_the_first_model(tmp_path):
    sessions = [qtool.Session(graph) for graph in (trained(), quantize_quickly(trained(), Backend.FBGEMM))]
    data = dataset(tmp_path)
    exact, close = measure_accuracy(sessions, data, "mse")
    assert exact.value == 0.0
    assert 0 < close.value < 1
    with pytest.raises(DataError, match="or with a first model"):
        measure_accuracy(sessions[:1], data, "mse")
    assert measure_accuracy(sessions[:1], data, "top1")[0].value == 1.0


def test_models_for_one_evaluation_take_the_same_inputs(tmp_path):
    workspace(tmp_path)
    config = DataConfig(tmp_path / "data.npz", "test")
    assert open_for_all(config, [trained(), trained()]).samples == 32
    b = Builder("other")
    renamed = b.finish([b.node("relu", [b.input("image", ("N", 3, 8, 8))], name="y")])
    np.savez(tmp_path / "data.npz", test_x=arrays()["test_x"])
    with pytest.raises(DataError, match="take different inputs"):
        open_for_all(config, [trained(), renamed])
