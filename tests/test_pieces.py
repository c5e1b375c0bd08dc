"""Large batches whose first operators run piece by piece, with the bits of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import isas
from random_graphs import RandomGraph

import qtool
from qtool import zoo
from qtool.engine import pieces, reference
from qtool.engine.lowering import Source, make_groups
from qtool.engine.pieces import find_cut
from qtool.engine.session import Session
from qtool.engine.shapes import concrete_shapes
from qtool.ir import DType, Graph, QParams
from qtool.ops.builder import Builder
from qtool.recipe.presets import get_preset

X = QParams.per_tensor(0.05, 120, DType.UINT8)


def _cut(graph: Graph, batch: int) -> tuple[int, int]:
    """How many groups run in how many pieces."""
    shapes = concrete_shapes(graph, {name: (batch, *graph.values[name].shape[1:]) for name in graph.inputs})
    source = Source(graph, shapes, graph.initializers)
    groups = make_groups(source, graph.nodes, graph.outputs)
    cut = find_cut(source, groups, graph.outputs)
    sizes = {cut.source.shapes[group.output][0] for group in groups[: cut.groups]}
    assert sizes in (set(), {batch // cut.pieces})
    return cut.groups, cut.pieces


def _net(*, channels: int = 16, side: int = 64, deep: int = 0) -> Graph:
    """A wide convolution, one that makes less of it, and a deep one."""
    b = Builder("net")
    x = b.node("quantize", [b.input("x", ("N", 8, side, side))], "q", X)
    for name, outputs in (("wide", channels), ("narrow", 8), ("deep", deep)):
        weight = np.ones((outputs, b.value(x).shape[1], 1, 1), np.int8)
        scale = QParams(np.full(outputs, 0.004, np.float32), np.zeros(outputs, np.int32), DType.INT8, 0)
        x = b.node("conv2d", [x, b.param(f"{name}.weight", weight, scale)], name, X) if outputs else x
    return b.finish([b.node("dequantize", [b.node("flatten", [x], "flat", X)], "dq")], "fbgemm")


# ---- where batches are cut --------------------------------------------------------------------------------------


def test_small_batches_stay_whole():
    assert _cut(_net(), 1) == (0, 1)
    assert _cut(_net(), 2) == (0, 1)


def test_the_cut_is_where_the_least_is_handed_on():
    graph = _net(channels=256)  # 1 MiB a picture
    assert _cut(graph, 8) == (3, 8)  # behind the narrow one


def test_a_piece_is_as_large_as_the_caches_allow():
    assert _cut(_net(channels=64), 64) == (3, 32)  # 288 KiB a picture: two at a time, the most that divides 64
    assert _cut(_net(channels=256), 7) == (3, 7)


def test_weights_that_would_be_read_too_often_stay_whole(monkeypatch):
    monkeypatch.setattr(pieces, "FAR_BYTES", 1 << 10)
    graph = _net(channels=2048, side=4)  # 16 KiB of weights, 32 KiB of results a picture
    monkeypatch.setattr(pieces, "NEAR_BYTES", 1 << 10)
    assert _cut(graph, 4)[1] == 4
    assert _cut(_net(channels=2048, side=1), 4)[0] < 2


def test_what_works_across_the_batch_ends_the_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "gains", lambda *_: True)
    monkeypatch.setattr(pieces, "NEAR_BYTES", 1)
    graph = _net()
    assert _cut(graph, 2) == (3, 2)
    assert graph.nodes[3].op == "flatten"
    b = Builder("sum")  # with a constant as large as the batch
    x = b.input("x", ("N", 3, 4, 4))
    y = b.node("relu", [x], "relu")
    b_sum = b.node("add", [y, b.param("all", np.ones((2, 3, 4, 4), np.float32))], "add")
    assert _cut(b.finish([b_sum]), 2) == (1, 2)


# ---- results ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cut_all(monkeypatch):
    """Every batch is cut into its pictures, as long as operators allow it."""
    monkeypatch.setattr(pieces, "gains", lambda *_: True)
    monkeypatch.setattr(pieces, "NEAR_BYTES", 1)


@pytest.mark.usefixtures("need_native", "cut_all")
@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("quantized", [True, False], ids=["int8", "float"])
def test_random_graphs_in_pieces_are_the_whole(seed, quantized, monkeypatch):
    made = RandomGraph(seed, quantized=quantized)
    feeds = made.feeds(3)
    in_pieces = Session(made.graph, threads=2).run(feeds)
    monkeypatch.setattr(pieces, "gains", lambda *_: False)
    whole = Session(made.graph, threads=2).run(feeds)
    expected = reference.run(made.graph, feeds) if quantized else whole
    for name, array in expected.items():
        np.testing.assert_array_equal(in_pieces[name], array)


@pytest.mark.usefixtures("cut_all")
def test_random_graphs_are_cut_at_all():
    cuts = [_cut(RandomGraph(seed, quantized=True).graph, 3) for seed in range(60)]
    assert sum(count == 3 for _, count in cuts) == 60
    assert max(groups for groups, _ in cuts) >= 6


@pytest.mark.usefixtures("need_native", "cut_all")
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet", "resnet18"])
def test_networks_in_pieces_are_the_reference(name, isa):
    graph = zoo.build(name, image=48, classes=10)
    x = {"x": np.random.default_rng(0).standard_normal((4, 3, 48, 48)).astype(np.float32)}
    result = qtool.quantize(graph, {"": get_preset("default")}, [x]).graph
    session = Session(result, isa=isa)
    (output,) = result.outputs
    np.testing.assert_array_equal(session.run(x)[output], reference.run(result, x)[output])


@pytest.mark.usefixtures("need_native", "cut_all")
def test_watched_values_are_those_of_the_whole_batch():
    graph = zoo.build("resnet20", image=32, classes=10)
    x = {"x": np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)}
    name = graph.nodes[4].outputs[0]
    seen: dict[str, tuple[int, ...]] = {}
    Session(graph, watched=[name]).watch(x, lambda value, array: seen.update({value: array.shape}))
    assert seen[name][0] == 3
