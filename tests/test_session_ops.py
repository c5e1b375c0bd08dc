"""The session against the reference, operator by operator: equal in int8, close in float, on every instruction set."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

import numpy as np
import product_cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_cases import F32, MAKERS, Int8Case, feeds_of, graph_of
from kernels import isas
from op_cases import CASES, Case

from qtool.engine import reference
from qtool.engine.session import Session
from qtool.ir import DType, Graph, Node, QParams, Value, constant
from qtool.ops import infer_node
from qtool.ops.builder import Builder

pytestmark = pytest.mark.usefixtures("need_native")

BACKENDS = ("fbgemm", "onednn", "qnnpack")
ALL = {**MAKERS, "softmax": product_cases.softmax}
SIGNED = (
    *("mean", "layer_norm", "softmax", "add", "mul", "cat", "hardswish", "sigmoid", "relu6"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
)
NATIVE = {
    *("linear", "conv1d", "conv2d", "conv2d_grouped", "conv2d_depthwise", "conv2d_add", "add", "mul", "cat"),
    *("relu", "relu6", "hardtanh", "clamp", "leaky_relu", "elu", "hardswish", "hardsigmoid", "sigmoid", "tanh"),
    *("mean", "layer_norm", "softmax", "prelu"),
    *("max_pool1d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "quantize", "dequantize", "linear_dynamic"),
}
"""int8 operators that must not fall back but for one of these reasons."""
REASONS = ("the weight is not quantized symmetrically", "padding_mode", "an average of int8 bins")


def _check_int8(case: Int8Case, isa: str) -> str:
    """The session's outputs are the reference's; gives why it did not run in native code, "" where it did."""
    graph, feeds = graph_of(case), feeds_of(case)
    expected = reference.run(graph, feeds)["y"]
    session = Session(graph, isa=isa)
    got = session.run(feeds)["y"]
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected, err_msg=f"{case} {dict(session.fallbacks)}")
    return session.fallbacks.get("node", "")


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALL)
def test_int8_operators_have_the_bits_of_the_reference(name, backend, isa):
    rng = np.random.default_rng(zlib.crc32(f"{name} {backend}".encode()))
    reasons = {_check_int8(ALL[name](rng, backend), isa) for _ in range(8)} - {""}
    if name in NATIVE:
        assert all(reason.startswith(REASONS) for reason in reasons)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIGNED)
def test_int8_activations_have_the_bits_of_the_reference(name, backend, isa):
    rng = np.random.default_rng(zlib.crc32(f"{name} {backend} signed".encode()))
    reasons = {_check_int8(ALL[name](rng, backend, dtype=DType.INT8), isa) for _ in range(6)} - {""}
    assert all(reason.startswith(REASONS) for reason in reasons)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
def test_int8_transposed_convolutions_have_the_bits_of_the_reference(rank, per_channel, backend, isa):
    rng = np.random.default_rng(zlib.crc32(f"{rank} {per_channel} {backend}".encode()))
    for _ in range(25):
        assert not _check_int8(product_cases.conv_transpose(rng, backend, rank, per_channel), isa)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT8])
def test_int8_products_have_the_bits_of_the_reference(dtype, isa):
    rng = np.random.default_rng(31)
    for inner in (None, None, None, None, 1, 31, 32, 33, 800):
        assert not _check_int8(product_cases.matmul(rng, "fbgemm", dtype, inner), isa)


@pytest.mark.parametrize("isa", isas())
def test_int8_attention_reads_its_operands_where_they_lie(isa):
    """Transposed and split operands, a batch spread over another one, more columns than are packed at once."""
    rng = np.random.default_rng(37)
    x, out = QParams.per_tensor(0.04, 120, DType.UINT8), QParams.per_tensor(0.5, 100, DType.UINT8)
    b = Builder("net")
    whole = b.node("quantize", [b.input("x", (2, 70, 3, 2, 33))], "q", x)
    left, middle, right = b.nodes("split", [whole], 3, "parts", x, split_sizes=(1, 1, 1), dim=2)
    left, middle, right = (b.node("squeeze", [y], "s", x, dim=(2,)) for y in (left, middle, right))
    left, right = (b.node("permute", [y], "p", x, dims=(0, 2, 1, 3)) for y in (left, right))
    middle = b.node("permute", [middle], "t", x, dims=(0, 2, 3, 1))
    scores = b.node("matmul", [left, middle], "scores", out)
    graph = b.finish([scores, b.node("matmul", [scores, right], "context", out)], "fbgemm")
    feeds = {"x": rng.normal(0, 2, (2, 70, 3, 2, 33)).astype(F32)}
    expected = reference.run(graph, feeds)
    session = Session(graph, isa=isa, threads=2)
    assert not session.fallbacks
    for name, got in session.run(feeds).items():
        np.testing.assert_array_equal(got, expected[name])


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT8])
@pytest.mark.parametrize("last", [False, True])
def test_int8_means_over_any_axes_have_the_bits_of_the_reference(last, dtype, isa):
    x = QParams.per_tensor(0.04, 7, dtype)
    rng = np.random.default_rng(41)
    for count in range(1, 5):
        for axes in itertools.combinations(range(4), count):
            b = Builder("net")
            y = b.node("quantize", [b.input("x", (3, 5, 4, 6))], "q", x)
            y = b.node("max_pool2d", [y], "before", x, kernel_size=(1, 1), stride=(1, 1)) if last else y
            y = b.node("mean", [y], "node", x, dim=axes, keepdim=bool(rng.integers(2)))
            graph = b.finish([y], "fbgemm")
            feeds = {"x": rng.normal(0, 4, (3, 5, 4, 6)).astype(F32)}
            session = Session(graph, isa=isa)
            assert not session.fallbacks
            np.testing.assert_array_equal(session.run(feeds)[y], reference.run(graph, feeds)[y])


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("rank", [1, 2])
def test_float_transposed_convolutions_are_close_to_the_reference(rank, isa):
    rng = np.random.default_rng(29)
    for _ in range(25):
        case = product_cases.conv_transpose(rng, "fbgemm", rank)
        floats = tuple(o and replace(o, array=rng.normal(0, 1, o.array.shape).astype(F32)) for o in case.operands)
        floats = tuple(o and replace(o, qparams=None) for o in floats)
        graph = replace(graph_of(replace(case, operands=floats, out=None)), backend="")
        feeds = {"x0": floats[0].array}
        session = Session(graph, isa=isa)
        assert not session.fallbacks
        np.testing.assert_allclose(session.run(feeds)["y"], reference.run(graph, feeds)["y"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT8])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 1), (4, 5)])
@pytest.mark.parametrize("op", ["add", "mul"])
def test_int8_with_floats_has_the_bits_of_the_reference(op, shape, dtype, isa):
    """A tensor of constants stays in float; relu behind it bounds the bytes."""
    rng = np.random.default_rng(23)
    for activation in ("none", "relu"):
        x = QParams.per_tensor(0.04, 3, dtype)
        b = Builder("net")
        y = b.node("quantize", [b.input("x", (2, 3, 4, 5))], "q", x)
        attrs = {"activation": activation} if op == "add" else {}
        numbers = b.param("numbers", rng.normal(0, 1, shape).astype(np.float32))
        y = b.node(
            op, [y, numbers], "node", QParams.per_tensor(0.07, -5 if dtype is DType.INT8 else 90, dtype), **attrs
        )
        y = b.node("relu", [y], "after", b.value(y).qparams)
        graph = b.finish([y], "fbgemm")
        feeds = {"x": rng.normal(0, 3, (2, 3, 4, 5)).astype(np.float32)}
        session = Session(graph, isa=isa)
        assert not session.fallbacks
        np.testing.assert_array_equal(session.run(feeds)[y], reference.run(graph, feeds)[y])


PARAMETERS = {"conv1d", "conv2d", "linear", "batch_norm", "layer_norm", "prelu", "embedding", "matmul"}
"""Operators whose other inputs are parameters."""
SKIPPED = {"quantize", "dequantize", "linear_dynamic", "lstm_dynamic", "gru_dynamic", "rnn_dynamic", "embedding_rows"}
FALL_BACK = {"sum"}
"""Operators that have no native form."""
SELDOM = {*FALL_BACK, "mean"}
"""And those that have one for few of their forms."""


def _float_graph(case: Case, fixed: bool) -> Graph:
    """The case as a graph of one node; ``fixed`` makes initializers of all inputs but the first."""
    values, arrays, names = {}, {}, []
    for position, array in enumerate(case.arrays):
        names.append("" if array is None else f"i{position}")
        if array is None:
            continue
        values[f"i{position}"] = constant(f"i{position}", array)
        if position > 0 and (fixed or case.op in PARAMETERS):
            arrays[f"i{position}"] = array
    count = len(case.attrs["split_sizes"]) if case.op == "split" else 1
    node = Node(case.op, "node", tuple(names), tuple(f"o{i}" for i in range(count)), case.attrs)
    types = infer_node(node, [values[name].type if name else None for name in names])
    for out, inferred in zip(node.outputs, types, strict=True):
        values[out] = Value(out, inferred.dtype, inferred.shape)
    fed = tuple(name for name in names if name and name not in arrays)
    return Graph("case", fed, node.outputs, (node,), values, arrays)


@pytest.mark.parametrize("op", sorted(set(CASES) - SKIPPED))
def test_float_operators_are_close_to_the_reference(op):
    native = []

    @settings(max_examples=30)
    @given(case=CASES[op], fixed=st.booleans(), isa=st.sampled_from(isas()))
    def check(case: Case, fixed: bool, isa: str):
        graph = _float_graph(case, fixed)
        feeds = {name: case.arrays[int(name[1:])] for name in graph.inputs}
        if any(array.size == 0 for array in feeds.values()):
            return
        expected = reference.run(graph, feeds)
        session = Session(graph, isa=isa)
        for name, got in session.run(feeds).items():
            assert got.dtype == expected[name].dtype
            np.testing.assert_allclose(got, expected[name], rtol=2e-5, atol=2e-5, err_msg=str(dict(session.fallbacks)))
        native.append(not session.fallbacks)

    check()
    assert any(native) or op in SELDOM
    assert not (all(native) and op in FALL_BACK)
