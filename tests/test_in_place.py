"""Concatenations whose inputs write their results there themselves, with the bits of the reference."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import isas

from qtool.engine import reference
from qtool.engine.session import Session
from qtool.ir import DType, Graph, QParams
from qtool.ops.builder import Builder

pytestmark = pytest.mark.usefixtures("need_native")

X = QParams.per_tensor(0.05, 120, DType.UINT8)
OTHER = QParams.per_tensor(0.07, 120, DType.UINT8)
SHAPE = (2, 32, 9, 8)


def _conv(b: Builder, name: str, x: str, qparams: QParams = X, **attrs: object) -> str:
    inputs = b.value(x).shape[1]
    groups, size = attrs.get("groups", 1), attrs.pop("size", 3)
    outputs = int(attrs.pop("outputs", 24))
    rng = np.random.default_rng(len(name))
    weight = rng.integers(-60, 60, (outputs, inputs // groups, size, size)).astype(np.int8)
    scale = QParams(np.full(outputs, 0.004, np.float32), np.zeros(outputs, np.int32), DType.INT8, 0)
    w = b.param(f"{name}.weight", weight, scale)
    return b.node("conv2d", [x, w], name, qparams, padding=((size // 2,) * 2,) * 2, **attrs)


def _start() -> tuple[Builder, str]:
    b = Builder("net")
    return b, b.node("quantize", [b.input("x", SHAPE)], "q", X)


def _cat(b: Builder, parts: list[str], **more: object) -> str:
    return b.node("cat", parts, "cat", X, dim=1, **more)


def _end(b: Builder, x: str) -> str:
    """Behind a pool, so that what brings the graph's outputs into their layout is none of the concatenation's."""
    return b.node("max_pool2d", [x], "pool", X, kernel_size=(3, 3), stride=(2, 2))


def _branches() -> Graph:
    b, x = _start()
    parts = [
        _conv(b, "one", x, size=1),
        _conv(b, "three", _conv(b, "reduce", x, size=1), outputs=40),  # which lies beside the result, half written
        _conv(b, "relu", x, activation="relu"),
        _conv(b, "depthwise", x, groups=32, outputs=32),
    ]
    return b.finish([_end(b, _cat(b, parts))], "fbgemm")


def _nested() -> Graph:
    b, x = _start()
    inner = _cat(b, [_conv(b, "one", x), _conv(b, "two", x, size=1)])
    return b.finish([_end(b, _cat(b, [inner, _conv(b, "three", inner)]))], "fbgemm")


def _overwritten() -> Graph:
    """What follows the concatenation may lie where it does."""
    b, x = _start()
    wide = _cat(b, [_conv(b, "one", x, size=1), _conv(b, "two", _conv(b, "reduce", x, size=1))])
    return b.finish([_end(b, b.node("hardswish", [wide], "act", X))], "fbgemm")


def _handed_out() -> Graph:
    """Of one pixel each: the rows of a layer, and the concatenation is the caller's."""
    b = Builder("net")
    x = b.node("quantize", [b.input("x", (5, 32, 1, 1))], "q", X)
    parts = [_conv(b, "one", x, size=1), _conv(b, "two", x, size=1, outputs=7)]
    return b.finish([_cat(b, parts)], "fbgemm")


def _kept(kind: str) -> Graph:
    b, x = _start()
    first = _conv(b, "first", x, OTHER if kind == "qparams" else X)
    second = _conv(b, "second", x)
    if kind == "residual":
        second = b.node("add", [second, first], "add", X)
    parts = [first, second, first] if kind == "twice" else [first, second]
    outputs = [_end(b, _cat(b, parts)), *([first] if kind == "output" else ())]
    if kind == "reader":
        outputs.append(b.node("relu", [first], "relu", X))
    return b.finish(outputs, "fbgemm")


def _copies(graph: Graph, isa: str) -> int:
    """How many copies there are for the concatenations; the session's bits must be the reference's."""
    shape = graph.values["x"].shape
    feeds = {"x": np.random.default_rng(3).normal(0, 3, shape).astype(np.float32)}
    expected = reference.run(graph, feeds)
    for threads in (1, 2):
        session = Session(graph, isa=isa, threads=threads)
        assert not session.fallbacks
        for _ in range(2):
            for name, got in session.run(feeds).items():
                np.testing.assert_array_equal(got, expected[name])
    return sum(timing.node.startswith("cat") for timing in session.profile(feeds))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("graph", [_branches(), _overwritten(), _handed_out()], ids=["branches", "overwritten", "out"])
def test_convolutions_write_into_the_concatenation(graph, isa):
    assert _copies(graph, isa) == 0


@pytest.mark.parametrize("isa", isas())
def test_a_concatenation_in_another_one_is_copied_and_its_convolutions_are_not(isa):
    assert _copies(_nested(), isa) == 1


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(
    ("kind", "copies"),
    [("qparams", 1), ("residual", 2), ("twice", 2), ("output", 1), ("reader", 1)],
)
def test_what_others_need_is_copied(kind, copies, isa):
    assert _copies(_kept(kind), isa) == copies


def test_values_can_be_watched():
    graph, seen = _branches(), {}
    feeds = {"x": np.random.default_rng(3).normal(0, 3, SHAPE).astype(np.float32)}
    names = ("three", "cat")
    session = Session(graph, watched=names)
    session.watch(feeds, lambda name, value: seen.__setitem__(name, value.copy()))
    expected = reference.run(graph.with_outputs(names), feeds)
    for name in names:
        np.testing.assert_array_equal(seen[name], expected[name])
