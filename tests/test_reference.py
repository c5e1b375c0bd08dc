"""The NumPy interpreter: what it takes and gives, what it refuses, and the borders between float and int8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from int8_cases import MAKERS, SEEDS, Int8Case, Operand, evaluate, graph_of, some_params

from qtool.engine import reference, requantize, tables
from qtool.errors import DataError, EngineError
from qtool.ir import Graph
from qtool.ops import Builder, all_ops

F32 = np.float32


def two_layers() -> Graph:
    b = Builder("two")
    rng = np.random.default_rng(0)
    x, y = b.input("x", ("N", 3)), b.input("y", ("N", 4))
    with b.scope("fc"):
        weight = b.param("weight", rng.normal(size=(4, 3)).astype(F32))
        h = b.node("linear", [x, weight])
    s = b.node("add", [h, y], "sum")
    return b.finish([b.node("relu", [s], "out")])


def feeds(batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(batch, n)).astype(F32) for name, n in (("x", 3), ("y", 4))}


# ---- feeds and outputs -------------------------------------------------------------------------------------------


def test_a_float_graph_is_its_operators_one_after_the_other():
    graph, fed = two_layers(), feeds()
    got = reference.run(graph, fed)
    expected = np.maximum(fed["x"] @ graph.initializers["fc.weight"].T + fed["y"], 0)
    np.testing.assert_array_equal(got["out"], expected, strict=True)
    assert list(got) == ["out"]


def test_any_value_can_be_asked_for():
    graph, fed = two_layers(), feeds()
    got = reference.run(graph, fed, ["fc", "x", "out", "fc.weight", "sum"])
    assert list(got) == ["fc", "x", "out", "fc.weight", "sum"]
    np.testing.assert_array_equal(np.maximum(got["sum"], 0), got["out"])
    np.testing.assert_array_equal(got["x"], fed["x"])


def test_only_what_the_outputs_need_is_computed():
    graph = two_layers()
    assert [node.name for node in reference.needed_nodes(graph, ["fc"])] == ["fc"]
    assert [node.name for node in reference.needed_nodes(graph, ["out"])] == ["fc", "sum", "out"]
    assert reference.needed_nodes(graph, ["x"]) == []


BAD_FEEDS = [
    ({"x": np.zeros((2, 3), F32)}, "input 'y' is missing"),
    ({"z": np.zeros(2, F32)}, "no input 'z'; its inputs are x, y"),
    ({"x": np.zeros((2, 3))}, "input 'x': got dtype float64, expected float32"),
    ({"x": np.zeros((2, 5), F32)}, r"input 'x': got shape \(2, 5\), expected \(N, 3\)"),
    ({"x": np.zeros((2, 3, 1), F32)}, r"input 'x': got shape \(2, 3, 1\), expected \(N, 3\)"),
    ({"x": np.zeros((2, 3), F32), "y": np.zeros((5, 4), F32)}, "input 'y': got 5 for size 'N', expected 2 as before"),
]


@pytest.mark.parametrize(("fed", "message"), BAD_FEEDS)
def test_feeds_that_do_not_fit_are_data_errors(fed, message):
    merged = fed if "missing" in message else {**feeds(), **fed}
    with pytest.raises(DataError, match=message):
        reference.run(two_layers(), merged)


def test_an_unknown_output_is_a_data_error():
    with pytest.raises(DataError, match="no value 'nowhere'"):
        reference.run(two_layers(), feeds(), ["nowhere"])


def test_quantized_inputs_and_outputs_are_stored_integers():
    case = MAKERS["linear"](np.random.default_rng(0), "fbgemm")
    assert evaluate(case).dtype == np.uint8
    wrong = {"x0": case.operands[0].array.astype(np.int8)}
    with pytest.raises(DataError, match="got dtype int8, expected uint8"):
        reference.run(graph_of(case), wrong)


def test_feeds_and_initializers_are_left_as_they_were():
    for name, maker in MAKERS.items():
        case = maker(np.random.default_rng(3), "qnnpack")
        before = [operand.array.copy() for operand in case.operands if operand]
        evaluate(case)
        after = [operand.array for operand in case.operands if operand]
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new, err_msg=name)


# ---- what cannot run ---------------------------------------------------------------------------------------------


def test_an_unknown_backend_names_the_node():
    case = replace(MAKERS["add"](np.random.default_rng(0), "fbgemm"), backend="gpu")
    with pytest.raises(EngineError, match="add 'node': got backend 'gpu', expected one of fbgemm"):
        evaluate(case)


def test_hardswish_cannot_be_fused_in_int8():
    case = MAKERS["linear"](np.random.default_rng(0), "fbgemm")
    with pytest.raises(EngineError, match="linear 'node': activation 'hardswish' cannot be fused"):
        evaluate(replace(case, attrs={"activation": "hardswish"}))


def test_a_float_node_takes_no_quantized_input():
    case = MAKERS["relu"](np.random.default_rng(0), "fbgemm")
    with pytest.raises(EngineError, match="relu 'node': got a quantized input and a float output"):
        evaluate(replace(case, out=None))


def test_a_float_input_of_a_convolution_is_an_error():
    case = MAKERS["conv2d"](np.random.default_rng(0), "fbgemm")
    x = Operand(case.operands[0].array.astype(F32))
    with pytest.raises(EngineError, match="expected a quantized input, got a float one"):
        evaluate(replace(case, operands=(x, *case.operands[1:])))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_dynamic_quantization_refuses_what_has_no_range(value):
    case = MAKERS["linear_dynamic"](np.random.default_rng(0), "fbgemm")
    x = case.operands[0].array.copy()
    x[0, 0] = value
    with pytest.raises(DataError, match="linear_dynamic 'node': its input holds NaN or infinity"):
        evaluate(replace(case, operands=(Operand(x), *case.operands[1:])))


# ---- quantize and dequantize -------------------------------------------------------------------------------------


@given(some_params())
def test_every_stored_value_survives_dequantize_and_quantize(q):
    stored = tables.every_value(q)
    case = Int8Case("dequantize", "fbgemm", {}, (Operand(stored, q),), None)
    back = Int8Case("quantize", "fbgemm", {}, (Operand(evaluate(case)),), q)
    np.testing.assert_array_equal(evaluate(back), stored, strict=True)


@given(some_params(), SEEDS)
def test_quantization_is_monotone_and_half_a_step_off_at_most(q, seed):
    low, high = q.limits
    ends = (np.array([low, high]) - float(q.zero_point[0])) * float(q.scale[0])
    x = np.sort(np.random.default_rng(seed).uniform(*ends, 300).astype(F32))
    stored = q.quantize(x)
    assert (np.diff(stored.astype(int)) >= 0).all()
    error = np.abs(q.dequantize(stored).astype(np.float64) - x)
    assert error.max() <= float(q.scale[0]) * (0.5 + 2**-12)


@given(some_params(), st.floats(-1e3, 1e3))
def test_a_limit_of_clamp_is_the_stored_value_of_that_number(q, steps):
    limit = F32(steps * float(q.scale[0]))
    assert abs(requantize.quantize_limit(float(limit), q) - int(q.quantize(np.array([limit], F32))[0])) <= 1


def test_rounding_a_fused_product_and_sum_is_seen_in_a_tie():
    """0.7 * (1 / 0.2) is 3.5 in float32 and a little less unrounded: with the zero point 3 a tie, or none."""
    a, b, c = F32(0.7), F32(1) / F32(0.2), F32(3)
    assert a * b == F32(3.5)
    products = np.float64(a) * np.float64(b)
    assert products != 3.5
    fused = requantize.fused_multiply_add(a, b, -F32(3.5))
    assert fused == F32(products - 3.5) != 0
    assert requantize.fused_multiply_add(a, b, c) == F32(6.5)


def test_every_int8_definition_is_of_an_operator():
    assert set(reference.DEFINITIONS) <= set(all_ops())
