"""Rows of tables by number: every row of the layout family, embeddings and gathers against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import isas, kernel_rows, run_kernel

from qtool.engine import reference
from qtool.engine.session import Session
from qtool.errors import DataError, EngineError
from qtool.ir import DType, Graph
from qtool.native import Buffer, Kind, Op, Plan, abi
from qtool.ops.builder import Builder


def _args(count: int, table: np.ndarray, index_bytes: int = 8, **changes: int) -> abi.GatherArgs:
    fields = {"count": count, "table_rows": len(table), "row_bytes": table[0].nbytes, "index_bytes": index_bytes}
    return abi.make(abi.GatherArgs, **{**fields, **changes})


@pytest.mark.parametrize("row", kernel_rows("layout"))
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_rows_are_copied(row, kind):
    rng = np.random.default_rng(0)
    for count, rows, width in ((1, 1, 1), (5, 3, 7), (33, 100, 64), (700, 9, 129)):
        table = rng.normal(size=(rows, width)).astype(np.float32)
        places = rng.integers(-rows, rows, count).astype(kind)
        args = _args(count, table, np.dtype(kind).itemsize, wrap=1)
        for threads in (1, 2):
            got = run_kernel(row, Kind.GATHER, args, [places, table], table[places], threads=threads)
            np.testing.assert_array_equal(got, table[places])


def _graph(op: str, kind: DType, constant: bool = True) -> Graph:
    b = Builder(op)
    ids = b.input("ids", (4, 3), kind)
    table = np.random.default_rng(1).normal(size=(11, 6)).astype(np.float32)
    weight = b.param("w", table) if constant else b.input("w", table.shape)
    return b.finish([b.node(op, [ids, weight] if op == "embedding" else [weight, ids], "rows")])


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("kind", [DType.INT32, DType.INT64])
@pytest.mark.parametrize(("op", "least"), [("embedding", 0), ("gather", -11)])
def test_embeddings_and_gathers(op, least, kind, constant, isa):
    rng = np.random.default_rng(2)
    graph = _graph(op, kind, constant)
    feeds = {
        "ids": rng.integers(least, 11, (4, 3)).astype(kind.numpy),
        "w": rng.normal(size=(11, 6)).astype(np.float32),
    }
    feeds = {name: feeds[name] for name in graph.inputs}
    session = Session(graph, isa=isa)
    assert not session.fallbacks
    np.testing.assert_array_equal(session.run(feeds)["rows"], reference.run(graph, feeds)["rows"])
    for wrong in (least - 1, 11):
        bad = feeds["ids"].copy()
        bad[2, 1] = wrong
        with pytest.raises(DataError, match=f"'rows': got .* expected {least} to 10"):
            session.run(feeds | {"ids": bad})
    np.testing.assert_array_equal(session.run(feeds)["rows"], reference.run(graph, feeds)["rows"])


@pytest.mark.parametrize("isa", isas())
def test_a_table_that_others_read_too(isa):
    b = Builder("tied")
    table = b.param("w", np.random.default_rng(3).normal(size=(9, 5)).astype(np.float32))
    rows = b.node("embedding", [b.input("ids", (3,), DType.INT64), table], "rows")
    graph = b.finish([b.node("linear", [rows, table], "scores"), b.node("gelu", [rows], "gelu")])
    feeds = {"ids": np.array([8, 0, 3])}
    for name, got in Session(graph, isa=isa).run(feeds).items():
        np.testing.assert_allclose(got, reference.run(graph, feeds)[name], rtol=1e-5, atol=1e-6)


def test_a_gather_along_another_axis_stays_on_the_reference():
    b = Builder("gather")
    x = b.input("x", (3, 4))
    graph = b.finish([b.node("gather", [x, b.input("places", (2,), DType.INT64)], "y", axis=1)])
    session = Session(graph)
    assert list(session.fallbacks.values()) == ["a gather along another axis than the first"]


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"index_bytes": 2}, "4 or 8"), ({"table_rows": 0}, "empty"), ({"count": -1}, "negative"), ({"count": 3}, "has")],
)
def test_bad_descriptions_are_refused(changes, message):
    args = _args(**{"count": 2, "table": np.zeros((4, 4), np.float32), **changes})
    with pytest.raises(EngineError, match=message):
        Plan([Op(Kind.GATHER, (0, 1), 2, args)], [Buffer(16), Buffer(64), Buffer(32)], 0)
