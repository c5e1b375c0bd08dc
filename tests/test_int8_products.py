"""Quantized transposed convolutions and products of two activations; tests/peers has PyTorch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from int8_cases import SEEDS, call_of, evaluate, graph_of
from product_cases import conv_transpose, matmul

import qtool
from qtool.engine import reference
from qtool.engine.int8_products import transposed_weight
from qtool.engine.overflow import check_accumulators
from qtool.errors import QuantizationError
from qtool.ir import DType
from qtool.ops import attrs_of, get
from qtool.ops.builder import Builder
from qtool.ops.check import check_types
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_preset
from qtool.recipe.schema import Backend


def dequantized(case):
    return [None if o is None else o.qparams.dequantize(o.array) if o.qparams else o.array for o in case.operands]


def near_the_float_result(case):
    """At most one step off the float operator on dequantized operands, and that seldom."""
    attrs = attrs_of(graph_of(case).nodes[0])
    floats = [None if a is None else a.astype(np.float64) for a in dequantized(case)]
    (real,) = get(case.op).reference(attrs, *floats)
    steps = np.rint(real / case.out.scale[0]) + case.out.zero_point[0]
    low, high = case.out.limits
    off = np.abs(evaluate(case).astype(int) - np.clip(steps, low, high))
    assert off.max() <= 1
    assert np.count_nonzero(off) <= max(2, off.size // 50)


@settings(max_examples=60)
@given(SEEDS)
def test_matmul_rounds_the_exact_product(seed):
    rng = np.random.default_rng(seed)
    near_the_float_result(matmul(rng, str(rng.choice(["fbgemm", "qnnpack"])), DType(rng.choice(["uint8", "int8"]))))


def test_deep_products_stay_exact():
    """More than float32 can count: 2000 products of up to 255 * 255."""
    case = matmul(np.random.default_rng(0), "fbgemm", inner=2000)
    for operand in case.operands:
        operand.array[:] = 255
        operand.qparams.zero_point.setflags(write=True)
        operand.qparams.zero_point[:] = 0
    near_the_float_result(case)


@settings(max_examples=60)
@given(SEEDS)
def test_conv_transpose_rounds_the_exact_sum(seed):
    rng = np.random.default_rng(seed)
    backend, rank = str(rng.choice(["fbgemm", "qnnpack"])), int(rng.integers(1, 3))
    near_the_float_result(conv_transpose(rng, backend, rank, per_channel=bool(rng.integers(2))))


def attention(seed: int = 0):
    """Two projections, their product, an upsampling convolution."""
    rng = np.random.default_rng(seed)
    b = Builder("net")
    x = b.input("x", ("N", 6, 8))
    q, k = (b.node("linear", [x, b.param(f"{n}.w", rng.normal(size=(8, 8)).astype(np.float32))], n) for n in "qk")
    scores = b.node("matmul", [q, b.node("transpose", [k], "kt", dim0=1, dim1=2)], "scores")
    up = b.param("up.w", rng.normal(size=(6, 4, 3)).astype(np.float32))
    return b.finish([b.node("conv_transpose1d", [scores, up], "up", stride=(2,), padding=((1, 1),))])


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_static_models_quantize_both(backend):
    graph = attention()
    rng = np.random.default_rng(1)
    batches = [{"x": rng.normal(size=(4, 6, 8)).astype(np.float32)} for _ in range(4)]
    options, rules = PrepareOptions(backend=Backend(backend)), {"": get_preset("onednn")}
    results = [qtool.quantize(graph, rules, batches, options, debug=debug).graph for debug in (False, True)]
    check_types(results[0])
    ops = {node.op for node in results[0].nodes if results[0].values[node.outputs[0]].qparams}
    assert ops == {"quantize", "linear", "transpose", "matmul", "conv_transpose1d"}
    real = qtool.Session(graph).run(batches[0])["up"]
    got, again = (qtool.Session(result).run(batches[0])["up"] for result in results)
    np.testing.assert_array_equal(got, again)
    assert np.linalg.norm(got - real) < 0.08 * np.linalg.norm(real)


def test_per_channel_weights_of_transposed_convolutions_lie_along_the_second_axis():
    batches = [{"x": np.random.default_rng(1).normal(size=(4, 6, 8)).astype(np.float32)}]
    per_channel = replace(get_preset("fbgemm"), transposed_weight=None)
    graph = qtool.quantize(attention(), {"": per_channel}, batches).graph
    qparams = graph.values["up.w.q"].qparams
    assert (qparams.axis, qparams.scale.shape) == (1, (4,))
    largest = np.abs(attention().initializers["up.w"]).max(axis=(0, 2))
    np.testing.assert_array_equal(qparams.scale, largest / np.float32(127.5))


@pytest.mark.parametrize(("preset", "op"), [("fbgemm", "linear"), ("dynamic", "linear_dynamic")])
def test_products_with_a_constant_matrix_are_linear_layers(preset, op):
    rng = np.random.default_rng(8)
    b = Builder("net")
    x = b.input("x", ("N", 3, 8))
    w = rng.normal(size=(8, 5)).astype(np.float32)
    graph = b.finish([b.node("matmul", [x, b.param("m.w", w)], "m")])
    feeds = {"x": rng.normal(size=(2, 3, 8)).astype(np.float32)}
    result = qtool.quantize(graph, {"": get_preset(preset)}, [feeds])
    assert result.graph.producers.get("m", result.graph.producers.get("m.q")).op in (op, "dequantize")
    assert op in {node.op for node in result.graph.nodes}
    assert not result.calibrated.prepared.fallbacks
    np.testing.assert_array_equal(result.calibrated.prepared.graph.initializers["m.w.t"], w.T)
    got = qtool.Session(result.graph).run(feeds)["m"]
    assert np.linalg.norm(got - feeds["x"] @ w) < 0.03 * np.linalg.norm(got)
    assert qtool.compare(graph, result.graph, [feeds]).weights[0].layer == "m"


def test_a_constant_on_the_left_stays_in_float():
    b = Builder("net")
    x = b.node("linear", [b.input("x", (4, 8)), b.param("a.w", np.eye(8, dtype=np.float32))], "a")
    y = b.node("matmul", [b.param("m.w", np.ones((3, 4), np.float32)), x], "m")
    result = qtool.quantize(b.finish([y]), {"": get_preset("fbgemm")}, [{"x": np.ones((4, 8), np.float32)}])
    (fallback,) = result.calibrated.prepared.fallbacks
    assert fallback.node == "m"
    assert "constant" in fallback.reason


def test_groups_are_unfolded():
    case = conv_transpose(np.random.default_rng(3), "fbgemm", 2, per_channel=True, groups=3)
    call = call_of(case)
    weight, stored = transposed_weight(call), case.operands[1].array
    outputs = stored.shape[1]
    assert weight.array.shape[:2] == (3 * outputs, len(stored) // 3)
    per_group = len(stored) // 3
    np.testing.assert_array_equal(weight.array[outputs + 0, 0], stored[per_group, 0])
    np.testing.assert_array_equal(weight.params.scale, np.tile(case.operands[1].qparams.scale, 3))


def test_an_accumulator_that_could_overflow_is_named():
    b = Builder("net")
    x = b.input("x", ("N", 70000, 1))
    w = b.param("up.w", np.full((70000, 1, 1), 1.0, np.float32))
    graph = b.finish([b.node("conv_transpose1d", [x, w], "up")])
    with pytest.raises(QuantizationError, match="layer 'up': its int32 accumulator"):
        qtool.quantize(graph, {"": get_preset("onednn")}, [{"x": np.ones((1, 70000, 1), np.float32)}])
    assert check_accumulators(graph) == ()


def upsampled(mode: str, **attrs):
    rng = np.random.default_rng(5)
    b = Builder("net")
    x = b.input("x", ("N", 3, 5, 4))
    x = b.node("conv2d", [x, b.param("conv.w", rng.normal(size=(2, 3, 1, 1)).astype(np.float32))], "conv")
    scales = b.param("scales", np.array([1, 1, 2, 2.5], np.float32))
    x = b.node("resize", [x, "", scales], "up", mode=mode, **attrs)
    return b.finish([b.node("relu", [x], "relu")])


@pytest.mark.parametrize(
    ("mode", "attrs"),
    [
        ("nearest", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
        ("nearest", {}),
        ("linear", {"coordinate_transformation_mode": "align_corners"}),
    ],
)
def test_resizing_keeps_the_parameters_of_its_input(mode, attrs):
    graph = upsampled(mode, **attrs)
    batches = [{"x": np.random.default_rng(6).normal(size=(2, 3, 5, 4)).astype(np.float32)}]
    results = [qtool.quantize(graph, {"": get_preset("fbgemm")}, batches, debug=debug).graph for debug in (False, True)]
    check_types(results[0])
    assert results[0].values["up.q"].qparams == results[0].values["conv.q"].qparams
    got, again = (qtool.Session(result).run(batches[0])["relu"] for result in results)
    np.testing.assert_array_equal(got, again)
    stored = reference.run(results[0], batches[0], ["conv.q", "up.q"])
    qparams = results[0].values["up.q"].qparams
    attrs = attrs_of(results[0].producers["up.q"])
    (real,) = get("resize").reference(attrs, qparams.dequantize(stored["conv.q"]), None, graph.initializers["scales"])
    np.testing.assert_array_equal(stored["up.q"], qparams.quantize(real))


def test_cubic_resizing_stays_in_float():
    batches = [{"x": np.random.default_rng(6).normal(size=(2, 3, 5, 4)).astype(np.float32)}]
    prepared = qtool.quantize(upsampled("cubic"), {"": get_preset("fbgemm")}, batches).calibrated.prepared
    assert {fallback.node for fallback in prepared.fallbacks} == {"up", "relu"}
