"""Control flow: bodies in the graph, in its file, in the passes and in the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ir_raw import Entry, raw_zip

from qtool.engine import reference
from qtool.engine.session import Session
from qtool.errors import DataError, ModelError
from qtool.ir import DType, Graph
from qtool.ir.limits import MAX_GRAPH_DEPTH
from qtool.ir.npz import load, save
from qtool.ir.verify import verify
from qtool.ops import Builder, check_types
from qtool.passes import clean, fuse, optimize

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 4)).astype(np.float32)


def branch(name: str, op: str, rank_changes: bool = False) -> Graph:
    """(x, w) -> op(x . w') with a constant of its own."""
    b = Builder(name)
    x, w = b.input("x", ("N", 4)), b.input("w", (4, 4))
    with b.scope("fc"):
        y = b.node("linear", [x, w, b.param("bias", np.arange(4, dtype=np.float32))])
    y = b.node(op, [y])
    return b.finish([b.node("flatten", [y], start_dim=0) if rank_changes else y])


def if_graph(then: Graph, other: Graph) -> Graph:
    """relu(x) -> if cond -> relu, with dead and constant nodes beside it."""
    b = Builder("if")
    x, cond = b.input("x", ("N", 4)), b.input("cond", (), DType.BOOL)
    w = b.node("mul", [b.param("w", WEIGHT), b.param("two", np.array(2.0, np.float32))], "w2")
    x = b.node("identity", [b.node("relu", [x])])
    (y,) = b.nodes("if", [cond, x, w], 1, "choice", graphs={"then_branch": then, "else_branch": other})
    b.node("relu", [x], "dead")
    return b.finish([b.node("relu", [y], "last")])


def sample() -> Graph:
    return if_graph(branch("then", "relu"), branch("else", "neg"))


def expected(x: np.ndarray, cond: bool) -> np.ndarray:
    y = np.maximum(x, 0) @ (2 * WEIGHT).T + np.arange(4, dtype=np.float32)
    return np.maximum(y if cond else -y, 0)


@pytest.mark.parametrize("cond", [True, False])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_branch_is_chosen(cond: bool, engine):
    graph = sample()
    verify(graph)
    check_types(graph)
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    feeds = {"x": x, "cond": np.array(cond)}
    session = Session(graph, engine=engine)
    assert "choice" not in session.fallbacks
    assert session.fallbacks["choice.then_branch.fc"] == (
        "the weight is not a constant" if session.engine == "native" else "the native engine is not used"
    )
    np.testing.assert_allclose(session.run(feeds)["last"], expected(x, cond), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(reference.run(graph, feeds)["last"], expected(x, cond), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rewrite", [clean, fuse, optimize])
def test_passes_keep_bodies(rewrite):
    graph = sample()
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    better = rewrite(graph)
    assert len(better.nodes) < len(graph.nodes)
    (choice,) = (node for node in better.nodes if node.op == "if")
    assert choice.graphs.keys() == {"then_branch", "else_branch"}
    for cond in (True, False):
        got = reference.run(better, {"x": x, "cond": np.array(cond)})["last"]
        np.testing.assert_allclose(got, expected(x, cond), rtol=1e-5, atol=1e-5)


def loop_graph(trips: int | None, limit: float | None = None) -> Graph:
    """h = 2 * h + step each turn; rows are the turn numbers and the h's; ends when sum(h) reaches the limit."""
    b = Builder("body")
    turn, going = b.input("turn", (), DType.INT64), b.input("going", (), DType.BOOL)
    h, step = b.input("h", ("N", 2)), b.input("step", (2,))
    new = b.node("add", [b.node("add", [h, h]), step], "new")
    if limit is None:
        going = b.node("identity", [going], "again")
    else:
        going = b.node("less", [b.node("sum", [new]), b.param("limit", np.array(limit, np.float32))], "again")
    body = b.finish([going, new, b.node("identity", [turn], "turns"), b.node("neg", [new], "row")])
    b = Builder("loop")
    h, step = b.input("h", ("N", 2)), b.input("step", (2,))
    count = "" if trips is None else b.param("trips", np.array(trips, np.int64))
    outputs = b.nodes("loop", [count, "", h, step], 3, "loop", graphs={"body": body}, carried=1)
    return b.finish(outputs)


@pytest.mark.parametrize("trips", [0, 1, 3])
def test_a_loop_runs_as_often_as_told(trips: int):
    graph = loop_graph(trips)
    check_types(graph)
    assert graph.values["loop.0"].shape == ("N", 2)
    assert [graph.values[name].shape for name in ("loop.1", "loop.2")] == [("?loop.1.0",), ("?loop.2.0", "N", 2)]
    feeds = {"h": np.ones((1, 2), np.float32), "step": np.array([1, 2], np.float32)}
    h, turns, rows = Session(graph).run(feeds).values()
    state, states = feeds["h"], []
    for _ in range(trips):
        state = 2 * state + feeds["step"]
        states.append(-state)
    assert np.array_equal(h, state)
    assert turns.tolist() == list(range(trips))
    assert rows.shape[0] == trips
    assert not trips or np.array_equal(rows, np.stack(states))


def test_a_loop_ends_when_its_condition_says_so():
    for trips, turns in ((None, 4), (100, 4), (2, 2)):
        feeds = {"h": np.ones((1, 2), np.float32), "step": np.zeros(2, np.float32)}
        h, counted, _ = reference.run(loop_graph(trips, limit=30.0), feeds).values()
        assert len(counted) == turns
        assert np.array_equal(h, np.full((1, 2), 2.0**turns))


def scan_graph(**attrs) -> Graph:
    """Running sums of the rows plus a captured offset, and the rows doubled."""
    b = Builder("body")
    total, row, offset = b.input("total", (3,)), b.input("row", (3,)), b.input("offset", ())
    new = b.node("add", [b.node("add", [total, row]), offset], "new")
    body = b.finish([new, b.node("identity", [new], "sums"), b.node("add", [row, row], "doubled")])
    b = Builder("scan")
    shape = (3, "T") if attrs.get("scan_input_axes") else ("T", 3)
    inputs = [b.input("total", (3,)), b.input("x", shape), b.input("offset", ())]
    return b.finish(b.nodes("scan", inputs, 3, "scan", graphs={"body": body}, num_scan_inputs=1, states=1, **attrs))


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("across", [0, 1])
def test_a_scan_goes_along_its_axis(backwards: int, across: int):
    attrs = {"scan_input_axes": (1,), "scan_output_axes": (1, -1)} if across else {}
    if backwards:
        attrs |= {"scan_input_directions": (1,), "scan_output_directions": (0, 1)}
    graph = scan_graph(**attrs)
    check_types(graph)
    x = RNG.standard_normal((5, 3)).astype(np.float32)
    feeds = {"total": np.zeros(3, np.float32), "x": x.T.copy() if across else x, "offset": np.array(0.5, np.float32)}
    rows = x[::-1] if backwards else x
    sums = np.cumsum(rows + np.float32(0.5), 0, dtype=np.float32)
    total, got, doubled = Session(graph).run(feeds).values()
    np.testing.assert_allclose(total, sums[-1], rtol=1e-5)
    np.testing.assert_allclose(got.T if across else got, sums, rtol=1e-5)
    assert np.array_equal(doubled.T if across else doubled, 2 * x)
    assert graph.values["scan.1"].shape == ((3, "T") if across else ("T", 3))


def test_sequences_must_be_of_one_length():
    b = Builder("body")
    left, right = b.input("left", ()), b.input("right", ())
    body = b.finish([b.node("add", [left, right])])
    b = Builder("scan")
    inputs = [b.input("a", ("A",)), b.input("b", ("B",))]
    graph = b.finish(b.nodes("scan", inputs, 1, "scan", graphs={"body": body}, num_scan_inputs=2))
    with pytest.raises(DataError, match=r"scan 'scan': got sequences of lengths \[2, 3\]"):
        reference.run(graph, {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})


def nested(depth: int) -> Graph:
    """An if in an if in an if; every level adds a constant of its own."""
    b = Builder(f"level{depth}")
    x, cond = b.input("x", ("N", 4)), b.input("cond", (), DType.BOOL)
    y = b.node("add", [x, b.param("offset", np.array(float(depth), np.float32))], "sum")
    if depth == 0:
        y = b.node("where", [cond, y, x], "chosen")
        return b.finish([y])
    bodies = {"then_branch": nested(depth - 1), "else_branch": nested(depth - 1)}
    (y,) = b.nodes("if", [cond, y, cond], 1, "deeper", graphs=bodies)
    return b.finish([y])


def same(a: Graph, b: Graph) -> bool:
    if (a.name, a.inputs, a.outputs, a.backend, dict(a.values)) != (
        b.name,
        b.inputs,
        b.outputs,
        b.backend,
        dict(b.values),
    ):
        return False
    if list(a.initializers) != list(b.initializers) or len(a.nodes) != len(b.nodes):
        return False
    arrays = all(np.array_equal(a.initializers[name], b.initializers[name]) for name in a.initializers)
    return arrays and all(same_node(x, y) for x, y in zip(a.nodes, b.nodes, strict=True))


def same_node(x, y) -> bool:
    plain = replace(x, graphs={}, attrs=dict(x.attrs)) == replace(y, graphs={}, attrs=dict(y.attrs))
    return plain and list(x.graphs) == list(y.graphs) and all(same(x.graphs[name], y.graphs[name]) for name in x.graphs)


@pytest.mark.parametrize("graph", [sample(), loop_graph(3, 30.0), scan_graph(), nested(3)], ids=lambda g: g.name)
def test_bodies_survive_the_file(graph: Graph, tmp_path):
    save(graph, tmp_path / "g.npz")
    again = load(tmp_path / "g.npz")
    assert same(graph, again)
    assert graph.parameter_bytes() == again.parameter_bytes()
    save(again, tmp_path / "h.npz")
    assert (tmp_path / "g.npz").read_bytes() == (tmp_path / "h.npz").read_bytes()


def test_only_a_graph_with_bodies_says_so(tmp_path):
    save(sample(), tmp_path / "g.npz")
    assert b'"qtool.graph/2"' in (tmp_path / "g.npz").read_bytes()
    save(branch("plain", "relu"), tmp_path / "h.npz")
    assert b'"qtool.graph/1"' in (tmp_path / "h.npz").read_bytes()


def test_arrays_of_bodies_have_members_of_their_own(tmp_path):
    save(sample(), tmp_path / "g.npz")
    with np.load(tmp_path / "g.npz") as archive:
        assert [name for name in archive.files if name.startswith("@body")] == ["@body1.fc.bias", "@body2.fc.bias"]


def repacked(path, change) -> bytes:
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files}
    change(members)
    entries = []
    for name, array in members.items():
        from io import BytesIO

        buffer = BytesIO()
        np.save(buffer, array)
        entries.append(Entry(f"{name}.npy", buffer.getvalue()))
    return raw_zip(entries)


def edited(members, old: str, new: str) -> None:
    text = members["@graph"].tobytes().decode()
    assert old in text
    members["@graph"] = np.frombuffer(text.replace(old, new).encode(), np.uint8)


HOSTILE = {
    "an array of no body": (lambda m: m.update({"@body9.w": np.zeros(2)}), "arrays of 9 bodies; the graph has 2"),
    "body zero": (lambda m: m.update({"@body0.w": np.zeros(2)}), "not named as an initializer"),
    "a path in a body": (lambda m: m.update({"@body1...%2Fw": np.zeros(2)}), "body 'then_branch': initializer"),
    "a missing array": (lambda m: m.pop("@body2.fc.bias"), "body 'else_branch': "),
    "bodies in version 1": (lambda m: edited(m, "qtool.graph/2", "qtool.graph/1"), "unknown entry 'graphs'"),
    "no body": (
        lambda m: edited(m, '"graphs":{"then_branch":{', '"graphs":{"then_branch":3,"x":{'),
        "expected an object",
    ),
    "meta in a body": (lambda m: edited(m, '"name":"then",', '"name":"then","meta":{},'), "unknown entry 'meta'"),
    "a foreign backend": (
        lambda m: edited(m, '"name":"then","backend":""', '"name":"then","backend":"tpu"'),
        "backend 'tpu'",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_body_is_refused(case, tmp_path):
    save(sample(), tmp_path / "g.npz")
    change, message = HOSTILE[case]
    (tmp_path / "h.npz").write_bytes(repacked(tmp_path / "g.npz", change))
    with pytest.raises(ModelError, match=r"h\.npz: ") as caught:
        load(tmp_path / "h.npz")
    assert message in str(caught.value)


def test_depth_is_bounded(tmp_path):
    verify(nested(MAX_GRAPH_DEPTH))
    save(nested(MAX_GRAPH_DEPTH), tmp_path / "g.npz")
    assert same(load(tmp_path / "g.npz"), nested(MAX_GRAPH_DEPTH))
    with pytest.raises(ModelError, match=f"nested deeper than {MAX_GRAPH_DEPTH} levels"):
        save(nested(MAX_GRAPH_DEPTH + 1), tmp_path / "h.npz")


def test_a_deep_file_is_refused(tmp_path):
    """The deepest body that may be gets one more, in the JSON."""
    save(nested(MAX_GRAPH_DEPTH), tmp_path / "g.npz")

    def deeper(members) -> None:
        body = '{"name":"","backend":"","arithmetic":"","inputs":[],"outputs":[],"values":{},"nodes":[]}'
        edited(members, '"op":"where"', f'"graphs":{{"a":{body}}},"op":"where"')

    (tmp_path / "h.npz").write_bytes(repacked(tmp_path / "g.npz", deeper))
    with pytest.raises(ModelError, match="nested deeper"):
        load(tmp_path / "h.npz")


BAD_IFS = [
    ("too few inputs", branch("then", "relu"), ["cond", "x"], "2 inputs of the body 'then_branch', expected 1"),
    ("another rank", branch("then", "relu", rank_changes=True), ["cond", "x", "w"], "one element type and one rank"),
    ("another shape", branch("then", "relu"), ["cond", "w", "x"], "of the body 'then_branch'"),
    ("no condition", branch("then", "relu"), ["x", "x", "w"], "expected one bool"),
]


@pytest.mark.parametrize(("name", "then", "inputs", "message"), BAD_IFS, ids=[case[0] for case in BAD_IFS])
def test_bodies_are_held_against_what_they_are_given(name, then, inputs, message):
    b = Builder("bad")
    b.input("x", ("N", 5 if name == "another shape" else 4))
    b.input("cond", (), DType.BOOL)
    b.input("w", (4, 4))
    with pytest.raises(ModelError, match=r"if 'if': got") as caught:
        b.nodes("if", inputs, 1, graphs={"then_branch": then, "else_branch": branch("else", "neg")})
    assert message in str(caught.value)


def test_bodies_are_named_as_the_operator_has_them():
    b = Builder("bad")
    with pytest.raises(ModelError, match=r"got bodies \('then',\), expected"):
        b.nodes("if", [b.input("c", (), DType.BOOL)], 1, graphs={"then": branch("then", "relu")})
    with pytest.raises(ModelError, match="expected none"):
        b.nodes("relu", [b.input("x", (1,))], 1, graphs={"then": branch("then", "relu")})


def test_types_are_checked_within_bodies():
    graph = sample()
    (place,) = (i for i, node in enumerate(graph.nodes) if node.op == "if")
    body = graph.nodes[place].graphs["then_branch"]
    wrong = replace(body, values={**body.values, "fc": replace(body.values["fc"], shape=("N", 5))})
    node = replace(graph.nodes[place], graphs={**graph.nodes[place].graphs, "then_branch": wrong})
    broken = replace(graph, nodes=(*graph.nodes[:place], node, *graph.nodes[place + 1 :]))
    verify(broken)
    with pytest.raises(ModelError, match="if 'choice': body 'then_branch': linear 'fc': got"):
        check_types(broken)
