"""The graph's own functions, and each structural rule broken once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_samples import float_graph, mobilenet_v2_int8, quantized_graph

from qtool.errors import ModelError
from qtool.ir import DType, Graph, Node, QParams, Value, constant, remake, rewire
from qtool.ir.limits import MAX_ATTR_DEPTH, MAX_NAME, MAX_NODES
from qtool.ir.verify import RULES, verify

Break = Callable[[Graph], Graph]


def test_the_samples_are_sound():
    for graph in (float_graph(), quantized_graph(), mobilenet_v2_int8(True), mobilenet_v2_int8(False)):
        verify(graph)


def with_value(graph: Graph, value: Value) -> Graph:
    return replace(graph, values={**graph.values, value.name: value})


def with_node(graph: Graph, index: int, **changes: object) -> Graph:
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], **changes)
    return replace(graph, nodes=tuple(nodes))


def with_qparams(graph: Graph, name: str, **changes: object) -> Graph:
    value = graph.values[name]
    old = value.qparams
    fields = {"scale": old.scale, "zero_point": old.zero_point, "dtype": old.dtype, "axis": old.axis, **changes}
    return with_value(graph, replace(value, qparams=QParams(**fields)))


def scaled(*scales: float) -> dict[str, np.ndarray]:
    return {"scale": np.array(scales, np.float32)}


def nested(depth: int) -> tuple:
    return () if depth == 0 else (nested(depth - 1),)


def with_body(graph: Graph, body: Graph, depth: int = 1) -> Graph:
    """The last node carries the body, which carries itself, and so on."""
    inner = body if depth == 1 else with_body(body, body, depth - 1)
    return with_node(graph, len(graph.nodes) - 1, graphs={"body": inner})


FLOAT_BREAKS: dict[str, tuple[str, Break]] = {
    "too many nodes": ("nodes; at most", lambda g: replace(g, nodes=g.nodes * (MAX_NODES // len(g.nodes) + 1))),
    "unknown backend": ("backend 'tpu' is not known", lambda g: replace(g, backend="tpu")),
    "control character": ("name is 'a\\\\x1b", lambda g: replace(g, name="a\x1b[31m")),
    "no node name": ("a node's name is ''", lambda g: with_node(g, 0, name="")),
    "no operator": ("operator of node 'fc1'", lambda g: with_node(g, 0, op="")),
    "long scope": ("scope of node 'fc1'", lambda g: with_node(g, 0, scope="s" * (MAX_NAME + 1))),
    "surrogate": ("scope of node 'fc1'", lambda g: with_node(g, 0, scope="\ud800")),
    "misfiled value": ("filed under another name", lambda g: replace(g, values={**g.values, "z": g.values["x"]})),
    "two names": ("two nodes are called 'fc1'", lambda g: with_node(g, 1, name="fc1")),
    "no outputs": ("graph has no outputs", lambda g: replace(g, outputs=())),
    "doubled output": ("lists an output twice", lambda g: replace(g, outputs=("left", "left"))),
    "unknown output": ("graph output 'gone' is not among", lambda g: replace(g, outputs=("gone",))),
    "unknown input": ("graph input 'gone' is not among", lambda g: replace(g, inputs=("x", "gone"))),
    "input with array": ("is an initializer as well", lambda g: replace(g, inputs=("x", "two"))),
    "node without outputs": ("linear 'fc1' has no outputs", lambda g: with_node(g, 0, outputs=())),
    "unknown reference": ("clamp 'act' refers to 'gone'", lambda g: with_node(g, 1, inputs=("gone",))),
    "empty output": ("clamp 'act' refers to ''", lambda g: with_node(g, 1, outputs=("",))),
    "made twice": ("already made as an output of linear 'fc1'", lambda g: with_node(g, 1, outputs=("fc1",))),
    "makes an input": ("already made as a graph input", lambda g: with_node(g, 1, outputs=("x",))),
    "makes an array": ("already made as an initializer", lambda g: with_node(g, 1, outputs=("two",))),
    "same output twice": ("already made as an output of odd", lambda g: with_node(g, 3, outputs=("left", "left"))),
    "cycle": ("reads 'fc2' before linear 'fc2' makes it", lambda g: with_node(g, 1, inputs=("fc2",))),
    "self loop": ("reads 'act' before clamp 'act' makes it", lambda g: with_node(g, 1, inputs=("act",))),
    "wrong order": ("before linear 'fc1' makes it", lambda g: replace(g, nodes=g.nodes[::-1][2:] + g.nodes[2:])),
    "not made": ("no array and no node makes", lambda g: replace(g, inputs=())),
    "deep bodies": ("nested deeper than 8", lambda g: with_body(g, float_graph(), 9)),
    "bodies with meta": ("has meta data", lambda g: with_body(g, replace(float_graph(), meta={"a": 1}))),
    "broken body": ("body 'body': two nodes are", lambda g: with_body(g, with_node(float_graph(), 1, name="fc1"))),
    "body without a name": ("the name of a body", lambda g: with_node(g, 0, graphs={"": float_graph()})),
    "unread array": (
        "initializer 'two' is read by no node",
        lambda g: with_node(g, 3, inputs=("fc2", "mask", "index")),
    ),
    "dangling value": ("value 'z' has no array", lambda g: with_value(g, Value("z", DType.FLOAT32, ()))),
    "array of no value": (
        "initializer 'z' is not among",
        lambda g: replace(g, initializers={**g.initializers, "z": np.zeros(1, np.float32)}),
    ),
    "other dtype": ("the graph says float64", lambda g: with_value(g, Value("two", DType.FLOAT64, ()))),
    "other shape": (
        "the graph says float32 of shape \\(1,\\)",
        lambda g: with_value(g, Value("two", DType.FLOAT32, (1,))),
    ),
    "symbolic array": ("initializer 'fc1.bias'", lambda g: with_value(g, Value("fc1.bias", DType.FLOAT32, ("N",)))),
    "negative size": ("expected sizes and symbols", lambda g: with_value(g, Value("fc1", DType.FLOAT32, ("N", -1)))),
    "bool size": ("expected sizes and symbols", lambda g: with_value(g, Value("fc1", DType.FLOAT32, ("N", True)))),
    "float size": ("expected sizes and symbols", lambda g: with_value(g, Value("fc1", DType.FLOAT32, ("N", 2.0)))),
    "many axes": ("expected sizes and symbols", lambda g: with_value(g, Value("fc1", DType.FLOAT32, (1,) * 17))),
    "empty symbol": ("a size of value 'fc1'", lambda g: with_value(g, Value("fc1", DType.FLOAT32, ("",)))),
    "absurd shape": ("more than", lambda g: with_value(g, Value("fc1", DType.FLOAT32, (2**40, 2**40)))),
    "huge attribute": ("attribute 'low' is 9", lambda g: with_node(g, 1, attrs={"low": 2**63})),
    "numpy attribute": ("attribute 'low'", lambda g: with_node(g, 1, attrs={"low": np.int64(1)})),
    "list attribute": ("attribute 'low'", lambda g: with_node(g, 1, attrs={"low": [1]})),
    "deep attribute": ("attribute 'low'", lambda g: with_node(g, 1, attrs={"low": nested(MAX_ATTR_DEPTH + 1)})),
    "unwritable text": ("attribute 'low'", lambda g: with_node(g, 1, attrs={"low": "\udfff"})),
    "unnamed attribute": ("an attribute of clamp 'act'", lambda g: with_node(g, 1, attrs={"": 1})),
}
INT8_BREAKS: dict[str, tuple[str, Break]] = {
    "parameters of another type": (
        "'x.q' is uint8 with parameters for int8",
        lambda g: with_qparams(g, "x.q", dtype=DType.INT8),
    ),
    "parameters of a float": (
        "float32 with parameters",
        lambda g: with_value(g, Value("x", DType.FLOAT32, ("N",), QParams.per_tensor(1, 0, DType.UINT8))),
    ),
    "axis too large": ("along axis 4", lambda g: with_qparams(g, "a.weight.q", axis=4)),
    "negative axis": ("along axis -1", lambda g: with_qparams(g, "a.weight.q", axis=-1)),
    "symbolic axis": ("along axis 0", lambda g: with_qparams(g, "x.q", axis=0)),
    "axis of another length": ("expected float32 of shape \\(3,\\)", lambda g: with_qparams(g, "a.weight.q", axis=1)),
    "channels without axis": ("expected float32 of shape \\(1,\\)", lambda g: with_qparams(g, "a.weight.q", axis=None)),
    "float64 scale": ("scale that is float64", lambda g: with_qparams(g, "x.q", scale=np.ones(1))),
    "int64 zero point": (
        "zero_point that is int64",
        lambda g: with_qparams(g, "x.q", zero_point=np.zeros(1, np.int64)),
    ),
    "short zero point": (
        "zero_point that is int32 of shape",
        lambda g: with_qparams(g, "x.q", zero_point=np.zeros(0, np.int32)),
    ),
    "NaN scale": ("scale nan", lambda g: with_qparams(g, "x.q", **scaled(float("nan")))),
    "infinite scale": ("scale inf", lambda g: with_qparams(g, "x.q", **scaled(float("inf")))),
    "zero scale": ("scale 0.0", lambda g: with_qparams(g, "x.q", **scaled(0.0))),
    "negative scale": ("scale -1.0", lambda g: with_qparams(g, "x.q", **scaled(-1.0))),
    "denormal scale": ("positive normal number", lambda g: with_qparams(g, "x.q", **scaled(1e-45))),
    "one bad scale": ("scale -2.0", lambda g: with_qparams(g, "a.weight.q", **scaled(1, 2, 3, -2, 5))),
    "zero point too low": (
        "zero_point -1; expected 0..255",
        lambda g: with_qparams(g, "x.q", zero_point=np.array([-1], np.int32)),
    ),
    "zero point too high": (
        "zero_point 256; expected 0..255",
        lambda g: with_qparams(g, "x.q", zero_point=np.array([256], np.int32)),
    ),
}


@pytest.mark.parametrize("case", FLOAT_BREAKS)
def test_a_broken_float_graph_is_refused(case):
    match, broken = FLOAT_BREAKS[case]
    with pytest.raises(ModelError, match=match):
        verify(broken(float_graph()))


@pytest.mark.parametrize("case", INT8_BREAKS)
def test_broken_quantization_parameters_are_refused(case):
    match, broken = INT8_BREAKS[case]
    with pytest.raises(ModelError, match=match):
        verify(broken(quantized_graph()))


def test_every_rule_is_broken_by_some_case():
    unbroken = set(RULES)
    for graph, cases in ((float_graph(), FLOAT_BREAKS), (quantized_graph(), INT8_BREAKS)):
        for _, broken in cases.values():
            unbroken -= {next(rule for rule in RULES if raises(rule, broken(graph)))}
    assert not unbroken


def raises(rule: Callable[[Graph], None], graph: Graph) -> bool:
    try:
        rule(graph)
    except ModelError:
        return True
    return False


def test_inner_values_can_become_outputs():
    verify(float_graph().with_outputs(["act", "x"]))


def test_producers_and_consumers():
    graph = float_graph()
    assert graph.producers["act"].name == "act"
    assert "x" not in graph.producers
    assert [node.name for node in graph.consumers["fc1"]] == ["act"]
    assert graph.consumers["left"] == ()
    assert graph.sole_consumer("fc1") is graph.nodes[1]
    assert graph.with_outputs(["fc1"]).sole_consumer("fc1") is None


def test_a_node_that_reads_a_value_twice_is_one_consumer():
    value = Value("x", DType.FLOAT32, ())
    graph = Graph(
        "g", ("x",), ("y",), (Node("add", "y", ("x", "x"), ("y",)),), {"x": value, "y": replace(value, name="y")}, {}
    )
    assert graph.consumers["x"] == graph.nodes


def test_remake_drops_what_is_no_longer_used():
    graph = float_graph()
    nodes = (graph.nodes[0], *rewire(graph.nodes[2:], {"act": "fc1"}))
    remade = remake(graph, nodes)
    verify(remade)
    assert "act" not in remade.values
    shorter = remake(graph, graph.nodes[:2], outputs=["act"])
    verify(shorter)
    assert set(shorter.initializers) == {"fc1.weight", "fc1.bias"}


def test_remake_adds_what_is_new():
    graph = float_graph()
    three = np.array(3.0, np.float32)
    nodes = rewire(graph.nodes, {"two": "between", "between": "three"})
    remade = remake(graph, nodes, values=[constant("three", three)], initializers={"three": three})
    verify(remade)
    assert "two" not in remade.initializers
    assert remade.initializers["three"] == 3.0


def test_element_types():
    assert DType.of(np.zeros(1, np.int8)) is DType.INT8
    assert [t for t in DType if t.is_float] == [DType.FLOAT32, DType.FLOAT64, DType.FLOAT16]
    assert {t.numpy.name for t in DType} == {t.value for t in DType}
    with pytest.raises(ModelError, match="complex128 is not supported"):
        DType.of(np.zeros(1, complex))


def test_the_type_of_a_quantized_value_is_float():
    graph = quantized_graph()
    assert graph.values["x.q"].type.dtype is DType.FLOAT32
    assert graph.values["a.bias"].type.dtype is DType.FLOAT32
    assert graph.is_quantized
    assert not float_graph().is_quantized


def test_quantization_rounds_half_to_even_and_saturates():
    qparams = QParams.per_tensor(0.5, 10, DType.UINT8)
    x = np.array([0.25, 0.75, -0.25, 1e9, -1e9, 122.5], np.float32)
    assert qparams.quantize(x).tolist() == [10, 12, 10, 255, 0, 255]
    assert qparams.dequantize(np.array([10, 0, 255], np.uint8)).tolist() == [0.0, -5.0, 122.5]


def test_the_zero_point_is_added_before_rounding():
    x = np.array([0.25, 0.75, -0.25, -0.75], np.float32)
    assert QParams.per_tensor(0.5, 7, DType.UINT8).quantize(x).tolist() == [8, 8, 6, 6]
    axis = QParams(np.array([0.5], np.float32), np.array([7], np.int32), DType.INT8, 0)
    assert axis.quantize(x[None]).tolist() == [[8, 8, 6, 6]]


def test_per_channel_parameters_run_along_their_axis():
    qparams = QParams(np.array([1, 2], np.float32), np.array([0, 1], np.int32), DType.INT8, 1)
    x = np.array([[4, 4], [-6, -6]], np.float32)
    assert qparams.quantize(x).tolist() == [[4, 3], [-6, -2]]
    assert np.array_equal(qparams.dequantize(qparams.quantize(x)), x)


@given(st.floats(2**-13, 2**13, width=32), st.integers(0, 255))
def test_every_storage_value_survives_a_round_trip(scale, zero_point):
    qparams = QParams.per_tensor(scale, zero_point, DType.UINT8)
    q = np.arange(256, dtype=np.uint8)
    assert np.array_equal(qparams.quantize(qparams.dequantize(q)), q)


def test_parameters_compare_by_value_and_are_frozen():
    a, b = (QParams.per_tensor(0.1, 3, DType.UINT8) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert a != QParams.per_tensor(0.1, 4, DType.UINT8)
    assert a != QParams(a.scale, a.zero_point, DType.UINT8, 0)
    with pytest.raises(ValueError, match="read-only"):
        a.scale[0] = 1
