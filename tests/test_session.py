"""The session on whole graphs: what lies between operators, plans, threads, feeds and reports."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels import isas
from random_graphs import RandomGraph

from qtool import native
from qtool.engine import reference
from qtool.engine.memory import Life, place
from qtool.engine.session import PLANS_KEPT, Session
from qtool.errors import DataError, EngineError
from qtool.ir import DType, Graph, QParams
from qtool.ops import Builder

need_native = pytest.mark.usefixtures("need_native")
ISAS = isas()


def _assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, exact: bool) -> None:
    assert list(got) == list(expected)
    for name, array in got.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        if exact:
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        else:
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


# ---- random graphs ----------------------------------------------------------------------------------------------


@need_native
@pytest.mark.parametrize("seed", range(60))
def test_int8_graphs_have_the_bits_of_the_reference(seed):
    """On every instruction set, with one thread and with two, in batches of several sizes."""
    made = RandomGraph(seed, quantized=True)
    for batch in (1, 3):
        feeds = made.feeds(batch)
        expected = reference.run(made.graph, feeds)
        for isa in native.supported_isas():
            _assert_same(Session(made.graph, threads=1 + seed % 2, isa=isa).run(feeds), expected, exact=True)


@need_native
@pytest.mark.parametrize("seed", range(40))
def test_float_graphs_are_close_to_the_reference(seed):
    made = RandomGraph(seed, quantized=False)
    feeds = made.feeds()
    expected = reference.run(made.graph, feeds)
    for isa in native.supported_isas():
        _assert_same(Session(made.graph, isa=isa).run(feeds), expected, exact=False)


@need_native
@pytest.mark.parametrize("seed", range(8))
def test_every_inner_value_can_be_an_output(seed):
    """Nothing may be fused away that somebody wants to see."""
    made = RandomGraph(seed, quantized=True)
    graph = made.graph.with_outputs([out for node in made.graph.nodes for out in node.outputs])
    feeds = made.feeds()
    _assert_same(Session(graph).run(feeds), reference.run(graph, feeds), exact=True)


@need_native
@pytest.mark.parametrize("quantized", [True, False])
def test_threads_do_not_change_a_bit(quantized):
    made = RandomGraph(3, quantized=quantized)
    feeds = made.feeds(5)
    one = Session(made.graph, threads=1).run(feeds)
    for threads in (2, 3):
        _assert_same(Session(made.graph, threads=threads).run(feeds), one, exact=True)


@need_native
@pytest.mark.parametrize("quantized", [True, False])
def test_sequences_change_between_channels_and_features(quantized):
    """conv1d wants the channels first, linear and layer norm want them last: in memory that is the same."""
    rng = np.random.default_rng(0)
    b = Builder("sequence")
    steps = iter([QParams.per_tensor(scale, 120, DType.UINT8) if quantized else None for scale in (0.03,) * 9])

    def weight(name: str, *shape: int) -> str:
        stored = rng.integers(-100, 100, shape)
        if quantized:
            return b.param(name, stored.astype(np.int8), QParams.per_tensor(0.003, 0, DType.INT8))
        return b.param(name, (stored * 0.003).astype(np.float32))

    x = b.input("x", ("N", 6, 11))
    y = b.node("quantize", [x], "start", next(steps)) if quantized else x
    y = b.node("conv1d", [y, weight("w1", 8, 6, 3)], "conv", kept := next(steps), padding=((1, 1),))
    y = b.node("transpose", [y], "turned", kept, dim0=1, dim1=2)
    y = b.node("linear", [y, weight("w2", 20, 8)], "linear", next(steps), activation="relu")
    shape = {"normalized_shape": (20,)}
    y = b.node("layer_norm", [y, b.param("gain", rng.random(20, np.float32))], "norm", kept := next(steps), **shape)
    y = b.node("permute", [y], "back", kept, dims=(0, 2, 1))
    y = b.node("conv1d", [y, weight("w3", 5, 20, 2)], "last", next(steps), stride=(2,))
    graph = b.finish([y], "fbgemm" if quantized else "")
    feeds = {"x": rng.standard_normal((3, 6, 11)).astype(np.float32)}
    session = Session(graph)
    _assert_same(session.run(feeds), reference.run(graph, feeds), exact=quantized)
    assert not session.fallbacks
    moves = [row.node for row in session.profile(feeds) if row.kernel.startswith("layout")]
    assert not {"turned", "back"} & set(moves)


# ---- what runs together -----------------------------------------------------------------------------------------


def _small(quantized: bool) -> Graph:
    """conv -> relu6 -> conv -> add (with the first conv's result) -> relu."""
    rng = np.random.default_rng(0)
    b = Builder("small")
    x = b.input("x", ("N", 4, 6, 6))
    kinds = [QParams.per_tensor(scale, 60, DType.UINT8) if quantized else None for scale in (0.02, 0.03, 0.04, 0.05)]

    def weight(name: str) -> str:
        values = rng.integers(-100, 100, (4, 4, 3, 3))
        if quantized:
            return b.param(name, values.astype(np.int8), QParams.per_tensor(0.002, 0, DType.INT8))
        return b.param(name, (values * 0.002).astype(np.float32))

    pad = ((1, 1), (1, 1))
    start = b.node("quantize", [x], "start", kinds[0]) if quantized else x
    first = b.node("conv2d", [start, weight("w1")], "conv1", kinds[1], padding=pad)
    bounded = b.node("relu6", [first], "relu6", kinds[1])
    second = b.node("conv2d", [bounded, weight("w2")], "conv2", kinds[2], padding=pad)
    joined = b.node("add", [second, bounded], "add", kinds[3])
    return b.finish([b.node("relu", [joined], "relu", kinds[3])], "fbgemm" if quantized else "")


@need_native
@pytest.mark.parametrize("quantized", [True, False])
def test_neighbours_are_fused_into_one_operator(quantized):
    graph = _small(quantized)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    session = Session(graph)
    _assert_same(session.run(feeds), reference.run(graph, feeds), exact=quantized)
    names = [row.node for row in session.profile(feeds)]
    assert "conv1 + relu6" in names
    assert "conv2 + add + relu" in names
    assert session.fallbacks == {}


@need_native
def test_the_profile_names_kernels_and_times():
    graph = RandomGraph(0, quantized=True).graph
    session = Session(graph, isa="scalar")
    rows = session.profile(RandomGraph(0, quantized=True).feeds())
    assert all(row.seconds >= 0 for row in rows)
    assert any(row.seconds > 0 for row in rows)
    known = {row.name for row in native.kernels() if row.isa == "scalar"} | {"reference"}
    assert {row.kernel for row in rows} <= known
    node, kernel, seconds = rows[0]
    assert (node, kernel, seconds) == (rows[0].node, rows[0].kernel, rows[0].seconds)


@need_native
def test_fallbacks_are_named_with_the_reason():
    b = Builder("falls")
    x = b.input("x", ("N", 3))
    y = b.node("sum", [b.node("relu", [x], "before")], "total", dim=(1,))
    session = Session(b.finish([b.node("tanh", [y], "after")]))
    assert session.fallbacks == {"total": "there is no native sum"}
    got = session.run({"x": np.ones((2, 3), np.float32)})
    np.testing.assert_allclose(got["after"], np.tanh([3, 3]), rtol=1e-6)


# ---- sessions and feeds -----------------------------------------------------------------------------------------


@need_native
def test_shapes_are_planned_anew_and_plans_are_forgotten():
    made = RandomGraph(5, quantized=True)
    session = Session(made.graph)
    for batch in [*range(1, PLANS_KEPT + 3), 1, 2]:
        feeds = made.feeds(batch)
        _assert_same(session.run(feeds), reference.run(made.graph, feeds), exact=True)
        assert len(session._programs) <= PLANS_KEPT


@need_native
def test_one_session_serves_several_threads():
    made = RandomGraph(7, quantized=True)
    session = Session(made.graph, threads=2)
    work = [(feeds, reference.run(made.graph, feeds)) for feeds in (made.feeds(batch) for batch in (1, 2, 3, 4))]
    wrong = []

    def run(feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
        for _ in range(15):
            got = session.run(feeds)
            wrong.extend(name for name in got if not np.array_equal(got[name], expected[name]))

    threads = [threading.Thread(target=run, args=args) for args in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@need_native
def test_results_are_the_callers_own():
    """A second run leaves the first one's results alone, and outputs that are inputs or constants are copies."""
    b = Builder("plain")
    x = b.input("x", ("N", 2))
    c = b.param("c", np.ones(2, np.float32))
    y = b.node("add", [x, c], "y")
    session = Session(b.finish([x, c, y]))
    feeds = {"x": np.zeros((1, 2), np.float32)}
    first = session.run(feeds)
    first["x"][:] = 5
    first["c"][:] = 5
    assert feeds["x"].max() == 0
    second = session.run({"x": np.full((1, 2), 2, np.float32)})
    np.testing.assert_array_equal(second["y"], [[3, 3]])
    np.testing.assert_array_equal(first["y"], [[1, 1]])


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_constants_are_computed_once(engine, request):
    if engine == "native":
        request.getfixturevalue("need_native")
    b = Builder("constants")
    x = b.input("x", ("N", 2))
    weight = b.node("mul", [b.param("w", np.eye(2, dtype=np.float32)), b.param("two", np.array(2, np.float32))], "w2")
    graph = b.finish([b.node("linear", [x, weight], "y"), weight])
    session = Session(graph, engine=engine)
    got = session.run({"x": np.ones((3, 2), np.float32)})
    np.testing.assert_array_equal(got["y"], np.full((3, 2), 2))
    np.testing.assert_array_equal(got["w2"], 2 * np.eye(2))


@need_native
@pytest.mark.parametrize("storage", [DType.INT8, DType.UINT8])
def test_quantized_inputs_and_outputs_are_stored_integers(storage):
    qparams = QParams.per_tensor(0.05, 3, storage)
    b = Builder("stored")
    x = b.input("x", ("N", 3, 4, 4))
    graph = b.finish([b.node("hardswish", [x], "y", qparams)], "fbgemm")
    value = graph.values["x"]
    graph = Graph(
        **{**graph.__dict__, "values": {**graph.values, "x": type(value)("x", storage, value.shape, qparams)}}
    )
    q = np.random.default_rng(0).integers(*qparams.limits, (2, 3, 4, 4)).astype(storage.numpy)
    got = Session(graph).run({"x": q})
    _assert_same(got, reference.run(graph, {"x": q}), exact=True)
    assert got["y"].dtype == storage.numpy


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "x"),
        ({"x": np.zeros((1, 4, 6, 6), np.float32), "z": np.zeros(1, np.float32)}, "z"),
        ({"x": np.zeros((1, 4, 6, 6))}, "float64"),
        ({"x": np.zeros((1, 4, 6, 7), np.float32)}, "shape"),
        ({"x": np.zeros((4, 6, 6), np.float32)}, "shape"),
        ({"x": np.zeros((0, 4, 6, 6), np.float32)}, "no data"),
    ],
)
def test_feeds_that_do_not_fit(feeds, message, engine):
    with pytest.raises(DataError, match=message):
        Session(_small(True), engine=engine).run(feeds)


def test_feeds_may_be_strided():
    graph = _small(True)
    x = np.random.default_rng(2).standard_normal((2, 6, 6, 4)).astype(np.float32).transpose(0, 3, 1, 2)
    _assert_same(Session(graph).run({"x": x}), reference.run(graph, {"x": x}), exact=True)


def test_bad_settings():
    graph = _small(True)
    with pytest.raises(EngineError, match="engine"):
        Session(graph, engine="cuda")
    with pytest.raises(EngineError, match="threads"):
        Session(graph, threads=0)


@need_native
def test_an_unknown_instruction_set_is_an_error():
    with pytest.raises(EngineError, match="expected one of scalar"):
        Session(_small(True), isa="sse9")


def test_the_reference_engine_names_itself():
    graph = _small(True)
    session = Session(graph, engine="reference")
    feeds = {"x": np.ones((1, 4, 6, 6), np.float32)}
    _assert_same(session.run(feeds), reference.run(graph, feeds), exact=True)
    assert (session.engine, session.isa) == ("reference", "")
    assert list(session.fallbacks) == [node.name for node in graph.nodes]
    assert {row.kernel for row in session.profile(feeds)} == {"reference"}


def test_without_the_library_the_reference_runs(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_not", lambda: "there is no compiler here")
    assert Session(_small(True)).engine == "reference"
    with pytest.raises(EngineError, match="no compiler here"):
        Session(_small(True), engine="native")


# ---- memory -----------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 8)).map(
            lambda entry: Life(entry[0], entry[1], entry[1] + entry[2])
        ),
        max_size=40,
    )
)
def test_buffers_that_live_at_once_do_not_overlap(lives):
    offsets, size = place(lives)
    for i, (life, offset) in enumerate(zip(lives, offsets, strict=True)):
        assert offset % 64 == 0
        assert offset + life.bytes <= size
        for other, place_ in zip(lives[:i], offsets[:i], strict=True):
            apart = offset + life.bytes <= place_ or place_ + other.bytes <= offset
            assert apart or not life.meets(other)
    assert size <= sum(-(-life.bytes // 64) * 64 for life in lives)


def test_a_chain_needs_two_buffers():
    lives = [Life(640, i, i + 1) for i in range(50)]
    assert place(lives)[1] == 2 * 640


# ---- watched values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("seed", range(30))
def test_watched_values_are_what_the_graph_would_give(seed, engine):
    """Each once and after what it is made of, though the engine takes its memory back afterwards."""
    made = RandomGraph(seed, quantized=False)
    graph, feeds = made.graph, made.feeds()
    names = [out for node in graph.nodes for out in node.outputs]
    expected = Session(graph.with_outputs(names), engine=engine).run(feeds)
    seen: dict[str, np.ndarray] = {}

    def look(name: str, x: np.ndarray) -> None:
        assert name not in seen
        assert {part for part in graph.producers[name].inputs if part in names} <= seen.keys()
        seen[name] = x.copy()

    outputs = Session(graph, threads=2, engine=engine, watched=names).watch(feeds, look)
    assert set(seen) == set(names)
    _assert_same({name: seen[name] for name in names}, expected, exact=True)
    _assert_same(outputs, {name: expected[name] for name in graph.outputs}, exact=True)
