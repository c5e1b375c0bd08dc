"""Properties of the int8 arithmetic: of its parameters, and of what it makes of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import int8_cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from int8_cases import MAKERS, SEEDS, TABLES, Int8Case, Operand, call_of, evaluate, graph_of, some_params

from qtool.engine import dynamic, int8, requantize, tables
from qtool.engine.overflow import check_accumulators
from qtool.engine.requantize import Accumulate, AccumulateOperands, Arithmetic
from qtool.errors import QuantizationError
from qtool.ir import DType, QParams
from qtool.ops import geometry
from qtool.ops.conv import convolve

F32 = np.float32
DTYPES = st.sampled_from([DType.UINT8, DType.INT8])
BACKENDS = st.sampled_from(sorted(requantize.ARITHMETICS))


# ---- sums of products --------------------------------------------------------------------------------------------


def products_by_loops(case: Int8Case) -> np.ndarray:
    """The accumulators of a convolution from Python's integers, one output after the other."""
    x, weight = (operand.array.astype(object) for operand in case.operands[:2])
    zeros = np.broadcast_to(case.operands[1].qparams.zero_point, len(weight))
    attrs, zero = case.attrs, int(case.operands[0].qparams.zero_point[0])
    rank, groups = weight.ndim - 2, attrs["groups"]
    padded = np.pad(x - zero, ((0, 0), (0, 0), *attrs["padding"]), constant_values=0)
    out = evaluate(case).shape
    acc = np.zeros(out, np.int64)
    for index in np.ndindex(*out):
        n, o, *place = index
        total = 0
        for c, *tap in np.ndindex(*weight.shape[1:]):
            axes = zip(place, tap, attrs["stride"], attrs["dilation"], strict=True)
            at = tuple(p * s + t * d for p, t, s, d in axes)
            channel = o // (out[1] // groups) * weight.shape[1] + c
            total += padded[(n, channel, *at)] * (weight[(o, c, *tap)] - int(zeros[o]))
        acc[index] = total
    assert rank == len(attrs["stride"])
    return acc


@pytest.mark.parametrize("family", ["conv1d", "conv2d_grouped", "conv2d_depthwise"])
def test_accumulators_are_the_integers_that_loops_give(family):
    rng = np.random.default_rng(11)
    small = (case for case in (MAKERS[family](rng, "qnnpack") for _ in itertools.count()) if "dilation" in case.attrs)
    for case in itertools.islice((c for c in small if c.operands[0].array.size < 400), 4):
        call = call_of(case)
        params = int8.accumulate_parameters(call)
        expected = int8.finish(products_by_loops(case).astype(np.float64), params, 1, None)
        np.testing.assert_array_equal(evaluate(case), int8.stored(expected, case.out), strict=True)


@given(SEEDS, st.integers(1, 3000))
def test_float32_is_used_only_where_its_sums_are_exact(seed, taps):
    rng = np.random.default_rng(seed)
    x = rng.integers(-255, 256, (3, taps)).astype(F32)
    weight = rng.integers(-128, 128, (2, taps)).astype(F32)
    left, right = int8.exact_pair(x, weight)
    np.testing.assert_array_equal(left @ right.T, x.astype(np.int64) @ weight.astype(np.int64).T)
    assert left.dtype == (F32 if np.abs(x).max() * np.abs(weight).max() * taps < 2**24 else np.float64)


@given(SEEDS, BACKENDS)
def test_int8_activations_are_uint8_ones_shifted_by_128(seed, backend):
    rng = np.random.default_rng(seed)
    case = MAKERS[["linear", "conv2d", "conv2d_depthwise"][seed % 3]](rng, backend)

    def shifted(q: QParams) -> QParams:
        return QParams(q.scale, q.zero_point - 128, DType.INT8)

    x = case.operands[0]
    moved = Operand((x.array.astype(np.int16) - 128).astype(np.int8), shifted(x.qparams))
    signed = replace(case, operands=(moved, *case.operands[1:]), out=shifted(case.out))
    if case.attrs["activation"] == "clamp":  # its limits are rounded together with the zero point
        case, signed = (replace(c, attrs={**c.attrs, "activation": "relu", "clamp": None}) for c in (case, signed))
    np.testing.assert_array_equal(evaluate(signed).astype(int) + 128, evaluate(case))


@given(SEEDS)
def test_a_residual_is_added_before_the_only_rounding(seed):
    """So the result is the exact sum's nearest, which two roundings miss at times."""
    case = MAKERS["conv2d_add"](np.random.default_rng(seed), "fbgemm")
    call = call_of(case)
    params = int8.accumulate_parameters(call)
    x, weight = (operand.centred().astype(np.float64) for operand in call.inputs[:2])
    padded = geometry.pad(x, call.attrs.padding)
    acc = convolve(padded, weight, call.attrs.stride, call.attrs.dilation, call.attrs.groups)
    column = (-1, 1, 1)
    for bias in (params.bias_i32, params.bias_f32):
        acc = acc if bias is None else acc + bias.reshape(column)
    residual = call.input(3).centred() * np.float64(params.res_multiplier)
    exact = acc * params.multiplier.reshape(column).astype(np.float64) + residual + params.out_zero
    clamped = np.clip(exact, params.out_min, params.out_max)
    assert np.abs(evaluate(case) - clamped).max() <= 0.5 + 1e-3


@given(SEEDS)
def test_a_split_bias_is_added_as_if_unrounded(seed):
    """One scale for all channels: float(acc + whole) + rest is fma(bias, 1 / s, float(acc))."""
    rng = np.random.default_rng(seed)
    x, weight, out = (QParams.per_tensor(scale, 0, DType.INT8) for scale in rng.uniform(0.001, 0.1, 3))
    bias = rng.normal(0, 5, 64).astype(F32)
    operands = AccumulateOperands(x, weight, out, bias)
    params = requantize.accumulate(Arithmetic.FLOAT_BIAS, 64, operands, (0, 255))
    acc = rng.integers(-(2**20), 2**20, 64)
    got = (acc + params.bias_i32).astype(F32) + params.bias_f32
    inverse = F32(1) / (x.scale[0] * weight.scale[0])
    np.testing.assert_array_equal(got, requantize.fused_multiply_add(bias, inverse, acc.astype(F32)))


def test_backends_differ_in_the_bias():
    x = QParams.per_tensor(0.1, 0, DType.UINT8)
    weight = QParams(np.array([0.1, 0.1], F32), np.zeros(2, np.int32), DType.INT8, 0)
    operands = AccumulateOperands(x, weight, x, np.array([0.014, -0.026], F32))
    floats = requantize.accumulate(Arithmetic.FLOAT_BIAS, 2, operands, (0, 255))
    ints = requantize.accumulate(Arithmetic.INT_BIAS, 2, operands, (0, 255))
    assert floats.bias_i32 is None
    np.testing.assert_allclose(floats.bias_f32, [1.4, -2.6], rtol=1e-6)
    assert ints.bias_f32 is None
    assert ints.bias_i32.tolist() == [1, -3]


# ---- accumulators ------------------------------------------------------------------------------------------------


def some_accumulate(rng: np.random.Generator, weight: np.ndarray, bias: np.ndarray | None) -> Accumulate:
    x = QParams.per_tensor(0.05, int(rng.integers(0, 256)), DType.UINT8)
    qparams = QParams(np.full(len(weight), 0.01, F32), rng.integers(-9, 9, len(weight)).astype(np.int32), DType.INT8, 0)
    operands = AccumulateOperands(x, qparams, x, bias)
    return requantize.accumulate(Arithmetic.INT_BIAS, len(weight), operands, (0, 255))


@given(SEEDS)
def test_accumulator_bounds_are_reached_and_not_passed(seed):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (3, 2, 2)).astype(np.int8)
    params = some_accumulate(rng, weight, rng.normal(0, 1, 3).astype(F32))
    x = QParams.per_tensor(1.0, 0, DType.UINT8)
    centred = weight.reshape(3, -1).astype(int) - params.weight_zero[:, None]
    corners = np.array(list(itertools.product([0, 255], repeat=4))) - params.x_zero
    sums = corners @ centred.T + params.bias_i32
    assert requantize.accumulator_bounds(weight, x, params) == (sums.min(), sums.max())


@pytest.mark.parametrize("weight", [-128, 127])
def test_accumulator_bounds_are_exact_beyond_what_float32_holds(weight):
    rng, depth = np.random.default_rng(0), 3 * requantize.EXACT_SUM + 5
    params = some_accumulate(rng, np.zeros((2, 1), np.int8), np.zeros(2, F32))
    params = replace(params, weight_zero=np.full(2, -1 - weight, np.int32), bias_i32=None, x_zero=0)
    x = QParams.per_tensor(1.0, 0, DType.UINT8)
    total = (2 * weight + 1) * depth * 255
    rows = np.full((2, depth), weight, np.int8)
    assert requantize.accumulator_bounds(rows, x, params) == (min(total, 0), max(total, 0))


def test_an_accumulator_that_could_overflow_names_its_layer():
    rng = np.random.default_rng(0)
    x = QParams.per_tensor(0.05, 0, DType.UINT8)
    weight = np.full((1, 70_000), 127, np.int8)
    params = replace(some_accumulate(rng, weight, None), x_zero=0, weight_zero=np.zeros(1, np.int32))
    with pytest.raises(QuantizationError, match="layer 'fc1': its int32 accumulator can reach 2266950000"):
        requantize.check_accumulator("fc1", weight, x, params)
    assert requantize.check_accumulator("fc1", weight[:, :60_000], x, params) == ()


@pytest.mark.parametrize("backend", sorted(requantize.ARITHMETICS))
def test_a_graph_is_looked_at_layer_by_layer(backend):
    rng = np.random.default_rng(0)
    for family in ("linear", "conv1d", "conv2d", "conv2d_add", "add", "linear_dynamic"):
        graph = graph_of(MAKERS[family](rng, backend))
        assert check_accumulators(graph) == ()
    case = MAKERS["linear"](rng, backend)
    tiny = replace(case, out=replace(case.out, scale=np.array([1e-9], F32)), attrs={})
    (warning,) = check_accumulators(graph_of(tiny))
    assert warning.startswith("layer 'node': its requantization scale is")


def test_odd_scales_are_warned_of():
    rng = np.random.default_rng(0)
    x = QParams.per_tensor(0.05, 0, DType.UINT8)
    weight = np.ones((1, 4), np.int8)
    params = some_accumulate(rng, weight, None)
    for multiplier, words in ((300.0, "above 256"), (1e-42, "not a normal"), (np.inf, "not a normal")):
        odd = replace(params, multiplier=np.array([multiplier], F32))
        (warning,) = requantize.check_accumulator("fc1", weight, x, odd)
        assert "layer 'fc1'" in warning
        assert words in warning
    cut = replace(params, bias_i32=np.array([2**31 - 1], np.int32))
    with pytest.raises(QuantizationError, match="fc1"):
        requantize.check_accumulator("fc1", weight, x, cut)


@given(SEEDS, st.floats(-1e30, 1e30))
def test_huge_numbers_saturate(seed, bias):
    """Clamping comes before the conversion to integers, so that nothing wraps around."""
    case = MAKERS["linear"](np.random.default_rng(seed), "qnnpack" if seed % 2 else "fbgemm")
    outputs = len(case.operands[1].array)
    operands = (*case.operands[:2], Operand(np.full(outputs, bias, F32), None, True))
    huge = replace(case, operands=operands, attrs={"activation": "none"})
    if abs(bias) > 1e6 * float(case.out.scale[0]):
        expected = 255 if bias > 0 else 0
        assert (evaluate(huge) == expected).all()


# ---- one and two tensors -----------------------------------------------------------------------------------------


@given(SEEDS, BACKENDS, DTYPES)
def test_a_table_holds_what_the_operator_gives(seed, backend, dtype):
    op = TABLES[seed % len(TABLES)]
    case = MAKERS[op](np.random.default_rng(seed), backend, dtype=dtype)
    call = call_of(case)
    x = case.operands[0]
    table = tables.unary_table(op, call.attrs, (x.qparams, case.out), call.arithmetic)
    assert table.dtype == np.uint8
    assert table.shape == (256,)
    every = replace(case, operands=(Operand(tables.every_value(x.qparams), x.qparams),))
    np.testing.assert_array_equal(tables.offset(evaluate(every), case.out), table)


@given(SEEDS, BACKENDS, DTYPES)
def test_tables_are_near_the_float_function(seed, backend, dtype):
    op = TABLES[seed % len(TABLES)]
    case = MAKERS[op](np.random.default_rng(seed), backend, dtype=dtype)
    by_float = int8.by_float(call_of(case))[0]
    assert np.abs(evaluate(case).astype(int) - by_float).max() <= 1


def test_functions_without_a_table_have_none():
    q = QParams.per_tensor(0.1, 0, DType.UINT8)
    assert tables.unary_table("softmax", None, (q, q), Arithmetic.FLOAT_BIAS) is None


@given(some_params(), some_params(), st.floats(2.0**-10, 2.0**10, width=32))
def test_requantizing_is_near_and_nothing_to_the_same(x, out, ratio):
    out = replace(out, scale=x.scale * F32(ratio))
    np.testing.assert_array_equal(tables.requantize_table(x, x), np.arange(256))
    table = tables.requantize_table(x, out).astype(int) + out.limits[0]
    expected = out.quantize(x.dequantize(tables.every_value(x)))
    assert np.abs(table - expected).max() <= 1


def test_relu_with_parameters_of_its_own_goes_through_float():
    x, out = QParams.per_tensor(0.1, 100, DType.UINT8), QParams.per_tensor(0.05, 20, DType.UINT8)
    stored = np.arange(256, dtype=np.uint8)
    got = evaluate(Int8Case("relu", "fbgemm", {}, (Operand(stored, x),), out))
    np.testing.assert_array_equal(got, np.clip((stored.astype(int) - 100) * 2, 0, 235) + 20)


@given(some_params(DType.UINT8), some_params(DType.UINT8), some_params(DType.UINT8), SEEDS)
def test_fixed_point_and_float_sums_are_one_off_at_most(a, b, out, seed):
    params = requantize.fixed_point_add(a, b, out, (0, 255))
    ratios = [float(q.scale[0] / out.scale[0]) for q in (a, b)]
    assert (params is None) == any(not 2**-14 <= ratio < 2**8 for ratio in ratios)
    if params is None:
        return
    assert 2**21 <= max(params.a_multiplier, params.b_multiplier) <= 2**22
    x, y = np.random.default_rng(seed).integers(0, 256, (2, 300)).astype(np.uint8)
    fixed = int8.combine("add", params, x, y)
    floats = int8.combine("add", requantize.binary("add", a, b, out, (0, 255)), x, y)
    assert np.abs(fixed - floats).max() <= 1


def test_fixed_point_is_for_qnnpack_and_tensors_of_one_shape():
    q = QParams.per_tensor(0.1, 3, DType.UINT8)
    for arithmetic, same_shape in itertools.product(Arithmetic, (True, False)):
        params = requantize.add_parameters(arithmetic, same_shape, (q, q, q), (0, 255))
        assert params.fixed_point is (arithmetic is Arithmetic.INT_BIAS and same_shape)


def test_a_float_constant_is_added_between_dequantize_and_quantize():
    q = QParams.per_tensor(0.5, 10, DType.UINT8)
    stored = np.array([0, 10, 12, 255], np.uint8)
    for op, expected in (("add", [5, 15, 17, 255]), ("mul", [0, 10, 15, 255])):
        case = Int8Case(op, "fbgemm", {}, (Operand(stored, q), Operand(np.array(2.5, F32), None, True)), q)
        np.testing.assert_array_equal(evaluate(case), np.array(expected, np.uint8))


# ---- averages, moves, layers -------------------------------------------------------------------------------------


@given(SEEDS, BACKENDS, DTYPES)
def test_the_average_of_equal_numbers_is_that_number(seed, backend, dtype):
    rng = np.random.default_rng(seed)
    case = MAKERS[("avg_pool2d", "adaptive_avg_pool2d", "mean")[seed % 3]](rng, backend, dtype=dtype)
    x = case.operands[0]
    value = rng.integers(*x.qparams.limits)
    full = Operand(np.full_like(x.array, value), x.qparams)
    attrs = {**case.attrs, "count_include_pad": False} if case.op == "avg_pool2d" else case.attrs
    assert (evaluate(replace(case, operands=(full,), attrs=attrs)) == value).all()


@given(SEEDS, BACKENDS, DTYPES)
def test_averages_are_near_the_float_average(seed, backend, dtype):
    case = MAKERS[("avg_pool2d", "adaptive_avg_pool2d", "mean")[seed % 3]](
        np.random.default_rng(seed), backend, dtype=dtype
    )
    assert np.abs(evaluate(case).astype(int) - int8.by_float(call_of(case))[0]).max() <= 1


def test_a_mean_with_parameters_of_its_own():
    x, out = QParams.per_tensor(0.1, 100, DType.UINT8), QParams.per_tensor(0.05, 0, DType.UINT8)
    case = Int8Case("mean", "fbgemm", {"dim": (1,)}, (Operand(np.array([[100, 103]], np.uint8), x),), out)
    assert evaluate(case).tolist() == [3]


@pytest.mark.parametrize("op", int8.MOVES)
def test_moves_do_not_look_at_the_parameters(op):
    attrs = {
        "reshape": {"shape": (2, -1)},
        "transpose": {"dim0": 1, "dim1": 2},
        "permute": {"dims": (0, 2, 1, 3)},
        "squeeze": {"dim": (0,)},
        "unsqueeze": {"dim": 0},
        "slice": {"dim": 2, "start": 1, "end": 3},
        "split": {"dim": 2, "split_sizes": (4,)},
        "max_pool2d": {"kernel_size": (2, 2), "stride": (1, 1)},
        "max_pool1d": {"kernel_size": (2,), "stride": (1,)},
        "adaptive_max_pool2d": {"output_size": (2, 2)},
        "adaptive_max_pool1d": {"output_size": (2,)},
    }.get(op, {})
    shape = (1, 3, 4) if op.endswith("1d") else (1, 3, 4, 5)
    x = int8_cases.some_activation(np.random.default_rng(0), shape, DType.INT8)
    got = evaluate(Int8Case(op, "fbgemm", attrs, (x,), x.qparams))
    (expected,) = int8.by_float(call_of(Int8Case(op, "fbgemm", attrs, (x,), x.qparams)))
    np.testing.assert_array_equal(got, expected, strict=True)
    finer = replace(x.qparams, scale=x.qparams.scale / F32(2))
    other = evaluate(Int8Case(op, "fbgemm", attrs, (x,), finer))
    assert not np.array_equal(other, got)


@given(SEEDS, DTYPES)
def test_layer_norm_is_near_the_float_one(seed, dtype):
    case = MAKERS["layer_norm"](np.random.default_rng(seed), "fbgemm", dtype=dtype)
    assert np.abs(evaluate(case).astype(int) - int8.by_float(call_of(case))[0]).max() <= 1


# ---- dynamic -----------------------------------------------------------------------------------------------------


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32), st.booleans())
def test_dynamic_parameters_hold_zero_and_the_range(low, high, reduce_range):
    low, high = sorted((low, high))
    scale, zero = dynamic.choose_qparams(F32(low), F32(high), reduce_range)
    largest = 127 if reduce_range else 255
    assert 0 <= zero <= largest
    assert scale > 0
    slack = float(scale) * (0.5 + 1e-4)
    assert -zero * float(scale) <= min(low, 0) + slack
    assert (largest - zero) * float(scale) >= max(high, 0) - slack


def test_a_range_of_nothing_has_a_scale():
    assert dynamic.choose_qparams(F32(0), F32(0), False) == (F32(0.1), 0)
    assert dynamic.choose_qparams(F32(0), F32(1e-7), False) == (dynamic.SMALL_SCALE, 0)
    assert dynamic.choose_qparams(F32(-1e-7), F32(0), False) == (dynamic.SMALL_SCALE, 255)


@given(SEEDS)
def test_rows_by_themselves_are_row_wise(seed):
    case = MAKERS["linear_dynamic"](np.random.default_rng(seed), "qnnpack", row_wise=True)
    whole = evaluate(case)
    for index, row in enumerate(case.operands[0].array):
        alone = replace(
            case, operands=(Operand(row[None]), *case.operands[1:]), attrs={**case.attrs, "row_wise": False}
        )
        np.testing.assert_array_equal(whole[index], evaluate(alone)[0])


def test_dynamic_linear_is_near_the_float_product():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 5, 64)).astype(F32), int8_cases.some_weight(rng, (7, 64), False)
    attrs = {"reduce_range": False, "row_wise": False}
    got = evaluate(Int8Case("linear_dynamic", "fbgemm", attrs, (Operand(x), weight), None))
    exact = x @ weight.qparams.dequantize(weight.array).T
    assert got.shape == (2, 5, 7)
    assert np.abs(got - exact).max() < 0.02 * np.abs(exact).max()
