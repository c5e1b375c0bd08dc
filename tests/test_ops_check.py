"""check_types: float graphs, quantized graphs, and what is wrong with each of many broken ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qtool.errors import ModelError
from qtool.ir import DType, Graph, QParams, constant
from qtool.ops import Builder, check_types
from qtool.passes import lower_qdq

ACTIVATION = QParams.per_tensor(0.05, 10, DType.UINT8)
OTHER = QParams.per_tensor(0.1, 3, DType.UINT8)
PER_CHANNEL = QParams(np.full(4, 0.01, np.float32), np.zeros(4, np.int32), DType.INT8, 0)

ALONG_INPUTS = QParams(np.ones(3, np.float32), np.zeros(3, np.int32), DType.INT8, 1)


def float_graph() -> Graph:
    b = Builder("float")
    x = b.input("x", ("N", 3, 8, 8))
    with b.scope("conv"):
        y = b.node("conv2d", [x, b.param("weight", np.zeros((4, 3, 3, 3), np.float32)), "", ""])
    left, right = b.nodes("split", [y], 2, "split", dim=1, split_sizes=(1, 3))
    y = b.node("cat", [right, left], dim=1)
    return b.finish([b.node("flatten", [y])])


def int8_graph(
    weight: QParams = PER_CHANNEL,
    out: QParams | None = OTHER,
    pooled: QParams = OTHER,
    backend: str = "fbgemm",
    residual: bool = False,
) -> Graph:
    """x -> quantize -> conv (+ float initializer) -> max pool -> dequantize."""
    b = Builder("int8")
    x = b.node("quantize", [b.input("x", ("N", 3, 8, 8))], "x.q", ACTIVATION)
    with b.scope("conv"):
        w = b.param("weight.q", np.zeros((4, 3, 3, 3), weight.dtype.numpy), weight)
        bias = b.param("bias", np.zeros(4, np.float32))
        inputs = [x, w, bias, b.input("r", ("N", 4, 6, 6))] if residual else [x, w, bias]
        y = b.node("conv2d", inputs, "out", out)
    y = b.node("mul", [y, b.param("half", np.array(0.5, np.float32))], "mul", OTHER)
    y = b.node("max_pool2d", [y], "pool", pooled, kernel_size=(2, 2), stride=(2, 2))
    return b.finish([b.node("dequantize", [y], "y")], backend)


def dynamic_graph(weight: QParams | None, backend: str = "qnnpack", qparams: QParams | None = None) -> Graph:
    b = Builder("dynamic")
    w = b.param("w", np.zeros((4, 3), np.int8 if weight else np.float32), weight)
    y = b.node("linear_dynamic", [b.input("x", ("N", 3)), w], "y", qparams, reduce_range=True)
    return b.finish([y], backend)


def one_node(op: str, inputs: dict[str, QParams | None], out: QParams | None, **attrs) -> Graph:
    """A graph whose inputs are quantized by nodes where parameters are given."""
    b = Builder("one")
    names = []
    for name, qparams in inputs.items():
        names.append(b.input(name, ("N", 4)))
        if qparams:
            names[-1] = b.node("quantize", names[-1:], f"{name}.q", qparams)
    return b.finish([b.node(op, names, "y", out, **attrs)], "x86")


@pytest.mark.parametrize(
    "graph",
    [
        float_graph(),
        int8_graph(),
        int8_graph(weight=QParams.per_tensor(0.1, 0, DType.INT8), backend="qnnpack"),
        dynamic_graph(PER_CHANNEL),
        one_node("cat", {"a": ACTIVATION, "b": OTHER}, OTHER, dim=1),
        one_node("relu6", {"a": ACTIVATION}, OTHER),
        one_node("add", {"a": ACTIVATION, "b": OTHER}, QParams.per_tensor(1.0, -5, DType.INT8)),
    ],
    ids=lambda graph: graph.name,
)
def test_good_graphs_pass(graph: Graph):
    check_types(graph)


def test_what_is_recorded_must_be_what_is_inferred():
    graph = float_graph()
    for name, shape in (("conv", ("N", 4, 6, 7)), ("flatten", ("N", 145)), ("split.1", ("M", 3, 6, 6))):
        values = {**graph.values, name: replace(graph.values[name], shape=shape)}
        with pytest.raises(
            ModelError, match=rf"got float32 \({shape[0]}, .* recorded for '{name}', expected float32 \(N"
        ):
            check_types(replace(graph, values=values))
    values = {**graph.values, "conv": replace(graph.values["conv"], dtype=DType.INT64)}
    with pytest.raises(ModelError, match=r"got int64 .* recorded for 'conv', expected float32"):
        check_types(replace(graph, values=values))


def test_the_number_of_outputs_is_held():
    graph = float_graph()
    nodes = tuple(replace(n, outputs=n.outputs[:1]) if n.op == "split" else n for n in graph.nodes)
    with pytest.raises(ModelError, match="split 'split': got 1 outputs, expected 2"):
        check_types(replace(graph, nodes=nodes))


def test_unknown_operators_and_attributes_are_told():
    graph = float_graph()
    for change, message in (({"op": "convolve"}, "'convolve' is not known"), ({"attrs": {"pads": 1}}, "'pads'")):
        with pytest.raises(ModelError, match=message):
            check_types(replace(graph, nodes=(replace(graph.nodes[0], **change), *graph.nodes[1:])))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (int8_graph(backend=""), "got backend '' for int8 arithmetic"),
        (int8_graph(backend="tpu"), "got backend 'tpu' .* expected one of fbgemm"),
        (int8_graph(out=None), "conv2d 'conv.out': got the quantized input 'x.q' and a float output"),
        (int8_graph(pooled=ACTIVATION), "max_pool2d 'pool': got other quantization parameters for the output"),
        (int8_graph(residual=True), "conv2d 'conv.out': got the float input 'r' and a quantized output"),
        (int8_graph(weight=ALONG_INPUTS), "got weight parameters along axis 1, expected axis 0"),
        (int8_graph(weight=QParams.per_tensor(0.1, 1, DType.INT8)), "got a weight with a zero point"),
        (int8_graph(weight=QParams.per_tensor(0.1, 0, DType.UINT8)), "got a weight that is not int8"),
        (dynamic_graph(None), "got a weight that is not int8"),
        (dynamic_graph(PER_CHANNEL, backend=""), "got backend ''"),
        (dynamic_graph(PER_CHANNEL, qparams=OTHER), "expected only the weight to be quantized"),
        (one_node("gelu", {"a": ACTIVATION}, OTHER), "the operator has no int8 arithmetic"),
        (one_node("relu", {"a": ACTIVATION}, None), "got the quantized input 'a.q' and a float output"),
        (one_node("relu", {"a": None}, ACTIVATION), "got the float input 'a' and a quantized output"),
        (one_node("add", {"a": ACTIVATION, "b": None}, OTHER), "got the float input 'b' and a quantized output"),
        (one_node("quantize", {"a": ACTIVATION}, OTHER), "expected a float input and a quantized output"),
        (one_node("quantize", {"a": None}, None), "expected a float input and a quantized output"),
        (one_node("dequantize", {"a": None}, None), "expected a quantized input and a float output"),
        (one_node("split", {"a": ACTIVATION}, None, split_sizes=(4,), dim=1), "quantized input 'a.q'"),
    ],
)  # fmt: skip
def test_quantized_values_are_used_as_the_rules_allow(graph: Graph, message: str):
    with pytest.raises(ModelError, match=message):
        check_types(graph)


def test_activations_are_quantized_per_tensor():
    per_channel = QParams(np.ones(4, np.float32), np.zeros(4, np.int32), DType.UINT8, 1)
    with pytest.raises(ModelError, match="relu 'y': got per-channel parameters of an activation"):
        check_types(one_node("relu", {"a": per_channel}, per_channel))


def test_a_quantized_bias_is_refused():
    graph = int8_graph()
    bias = np.zeros(4, np.int8)
    values = {**graph.values, "conv.bias": constant("conv.bias", bias, QParams.per_tensor(1.0, 0, DType.INT8))}
    with pytest.raises(ModelError, match=r"got the quantized bias 'conv\.bias', expected float32"):
        check_types(replace(graph, values=values, initializers={**graph.initializers, "conv.bias": bias}))


@pytest.mark.parametrize(
    ("qparams", "message"),
    [
        (QParams.per_tensor(0.0, 0, DType.UINT8), "a scale that is not a positive number"),
        (QParams.per_tensor(-1.0, 0, DType.UINT8), "a scale that is not a positive number"),
        (QParams.per_tensor(float("nan"), 0, DType.UINT8), "a scale that is not a positive number"),
        (QParams.per_tensor(float("inf"), 0, DType.UINT8), "a scale that is not a positive number"),
        (QParams.per_tensor(1.0, 256, DType.UINT8), "a zero point outside of 0 to 255"),
        (QParams.per_tensor(1.0, -129, DType.INT8), "a zero point outside of -128 to 127"),
        (QParams.per_tensor(1.0, 0, DType.INT32), "expected int8 or uint8"),
        (
            QParams(np.ones(2, np.float32), np.zeros(2, np.int32), DType.UINT8),
            r"scales of shape \(2,\), expected \(1,\)",
        ),
        (QParams(np.ones(1, np.float32), np.zeros(4, np.int32), DType.UINT8), "zero points of shape"),
        (
            QParams(np.ones(3, np.float32), np.zeros(3, np.int32), DType.UINT8, 1),
            r"scales of shape \(3,\), expected \(4,\)",
        ),
        (QParams(np.ones(1, np.float32), np.zeros(1, np.int32), DType.UINT8, 0), r"expected \(N,\)"),
        (QParams(np.ones(3, np.float32), np.zeros(3, np.int32), DType.UINT8, 2), "got quantization axis 2"),
    ],
)
def test_quantization_parameters_must_fit_their_value(qparams: QParams, message: str):
    with pytest.raises(ModelError, match="value 'a.q': .*" + message):
        check_types(one_node("relu", {"a": qparams}, ACTIVATION))


def test_the_storage_type_is_that_of_the_parameters():
    graph = one_node("relu", {"a": ACTIVATION}, ACTIVATION)
    values = {**graph.values, "a.q": replace(graph.values["a.q"], dtype=DType.INT8)}
    with pytest.raises(ModelError, match="got storage int8 and parameters of uint8"):
        check_types(replace(graph, values=values))


@pytest.mark.parametrize(
    ("op", "out", "lowered"), [("flatten", ACTIVATION, True), ("flatten", OTHER, False), ("relu", OTHER, True)]
)
def test_integers_are_moved_as_they_are_only_where_they_mean_the_same(op: str, out: QParams, lowered: bool):
    b = Builder("qdq")
    x = b.node("quantize", [b.input("x", ("N", 4))], "x.q", ACTIVATION)
    y = b.node(op, [b.node("dequantize", [x], "x.dq")], "y")
    y = b.node("dequantize", [b.node("quantize", [y], "y.q", out)], "y.dq")
    graph = lower_qdq(b.finish([y], "fbgemm"))
    check_types(graph)
    assert (graph.producers["y.q"].op == op) is lowered
