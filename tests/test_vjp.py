"""Every vector-Jacobian product against differences of its reference, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from op_cases import CASES, Case
from op_onnx_cases import ONNX_CASES
from vjp_cases import DOMAINS, EMPTY, MORE

from qtool.errors import DataError, ModelError
from qtool.ops import all_ops, get, parse_attrs
from qtool.ops.registry import OpSpec, VjpCall

STEP = 1e-7
"""Of the central differences: so small that next to no random number lies within it of a kink."""
TOLERANCE = 1e-5
"""Of a sum of derivatives, by the sum of their sizes; rounding of the differences stays below 1e-7 / STEP * 1e-16."""
TRAINED = {spec.name for spec in all_ops().values() if spec.vjp is not None}
WITHOUT = {
    "integers or truth values in or out": "bit_shift bitwise_and bitwise_or bitwise_xor bitwise_not and or xor not"
    " equal greater less greater_or_equal less_or_equal is_nan is_inf arg_max arg_min non_zero bit_cast",
    "made from sizes and numbers": "shape size constant_of_shape range eye_like hann_window hamming_window"
    " blackman_window",
    "int8 arithmetic, for which training puts fake quantization": "quantize dequantize quantize_linear"
    " dequantize_linear dynamic_quantize_linear matmul_integer qlinear_matmul conv_integer qlinear_conv linear_dynamic"
    " embedding_rows lstm_dynamic gru_dynamic rnn_dynamic",
    "constant but for jumps, and not in PyTorch": "hardmax",
    "a choice without a derivative in PyTorch": "unique non_max_suppression",
    "bodies, which the engine runs": "if loop scan",
}
"""Why -> operators that training does not go through."""


def is_float(array) -> bool:
    return array is not None and array.dtype.kind == "f"


def run_vjp(spec: OpSpec, attrs, arrays, grads, needed=None):
    outputs = spec.reference(attrs, *arrays)
    needed = tuple(map(is_float, arrays)) if needed is None else needed
    call = VjpCall(attrs, tuple(arrays), outputs, tuple(grads), needed)
    assert spec.vjp is not None
    found = spec.vjp(call)
    assert len(found) == len(arrays)
    for array, grad, wanted in zip(arrays, found, needed, strict=True):
        assert grad is None or (wanted and grad.shape == array.shape and grad.dtype == array.dtype)
    return found


def cotangents(rng, outputs, dtype):
    """Random ones for the outputs that are floats of this type."""
    return [rng.standard_normal(y.shape).astype(dtype) if y.dtype == dtype else None for y in outputs]


def check_differences(op: str, attrs: dict, arrays, seed: int = 0) -> int:
    """Along one random direction an input; gives the number of inputs that were looked at."""
    spec, rng = get(op), np.random.default_rng(seed)
    parsed = parse_attrs(spec.attrs, attrs, op)
    place = DOMAINS.get(op, lambda x, _: x)
    arrays = [place(a.astype(np.float64), i) if is_float(a) else a for i, a in enumerate(arrays)]
    outputs = spec.reference(parsed, *arrays)
    grads = cotangents(rng, outputs, np.float64)
    if not any(grad is not None for grad in grads):
        return 0
    found = run_vjp(spec, parsed, arrays, grads)
    count = 0
    for position, grad in enumerate(found):
        if not is_float(arrays[position]) or (op, position) in CONSTANT:
            assert grad is None
            continue
        count += 1
        direction = rng.standard_normal(arrays[position].shape)
        ends = []
        for sign in (1, -1):
            moved = list(arrays)
            moved[position] = arrays[position] + sign * STEP * direction
            ends.append(spec.reference(parsed, *moved))
        slope = sum(
            float(np.sum((plus - minus) * g)) / (2 * STEP)
            for plus, minus, g in zip(*ends, grads, strict=True)
            if g is not None
        )
        assert grad is not None
        parts = grad * direction
        limit = TOLERANCE * (1 + float(np.abs(parts).sum()))
        assert abs(float(parts.sum()) - slope) <= limit, f"input {position} of {op} {attrs}"
    return count


CONSTANT = {("resize", 1), ("resize", 2), ("roi_align", 1)}
"""Inputs that are floats, but tell what is to be done: they have no derivative."""


@pytest.mark.parametrize("op", sorted(TRAINED & set(CASES)))
def test_random_cases(op):
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CASES[op])
    def check(case: Case):
        assert check_differences(op, case.attrs, case.arrays)

    check()


@pytest.mark.parametrize("op", sorted(TRAINED - set(CASES) | (TRAINED & set(MORE))))
def test_listed_cases(op):
    """At least one of the cases has a float input that is differentiated."""
    cases = [*ONNX_CASES.get(op, []), *MORE.get(op, [])]
    assert sum(check_differences(op, attrs, arrays, seed) for attrs, *arrays in cases for seed in range(3)), op


@pytest.mark.parametrize("op", sorted(TRAINED))
def test_what_is_not_needed_is_not_given(op):
    """Nothing where it is not asked for, zeros where no output has a part in the loss."""
    for attrs, arrays in cases_of(op):
        spec = get(op)
        parsed = parse_attrs(spec.attrs, attrs, op)
        outputs = spec.reference(parsed, *arrays)
        none = run_vjp(spec, parsed, arrays, [None] * len(outputs), (False,) * len(arrays))
        assert none == (None,) * len(arrays)
        zeros = run_vjp(spec, parsed, arrays, [None] * len(outputs))
        assert all(grad is None or not np.nan_to_num(grad).any() for grad in zeros)


@pytest.mark.parametrize("op", sorted(TRAINED - {"cast"}))
def test_half_precision(op):
    """The derivatives have the inputs' type and are those of float64, as near as its ten bits allow."""
    for attrs, arrays in cases_of(op):
        spec, rng = get(op), np.random.default_rng(2)
        parsed = parse_attrs(spec.attrs, attrs, op)
        found = []
        halves = [a.astype(np.float16) if is_float(a) and (op, i) not in CONSTANT else a for i, a in enumerate(arrays)]
        shapes = [y.shape for y in spec.reference(parsed, *halves)]
        grads = [rng.standard_normal(shape).astype(np.float16) for shape in shapes]
        for dtype in (np.float16, np.float64):
            same = [a.astype(dtype) if a is not None and a.dtype == np.float16 else a for a in halves]
            outputs = spec.reference(parsed, *same)
            given = [g.astype(y.dtype) if is_float(y) else None for g, y in zip(grads, outputs, strict=True)]
            found.append(run_vjp(spec, parsed, same, given))
        for half, wide in zip(*found, strict=True):
            if half is not None and wide is not None and wide.dtype == np.float64:
                fits = np.isfinite(half) & np.isfinite(wide)
                limit = 0.03 * max(1.0, float(np.abs(wide[fits]).max(initial=0)))
                np.testing.assert_allclose(half[fits].astype(np.float64), wide[fits], rtol=0, atol=limit)


@pytest.mark.parametrize("case", EMPTY, ids=lambda case: f"{case[0]} {case[1]}")
def test_tensors_without_elements(case):
    op, attrs, *arrays = case
    spec = get(op)
    parsed = parse_attrs(spec.attrs, attrs, op)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of the mean of nothing
        outputs = spec.reference(parsed, *arrays)
        found = run_vjp(spec, parsed, arrays, [np.ones_like(y) if is_float(y) else None for y in outputs])
    assert any(grad is not None for grad in found)


@pytest.mark.parametrize("op", sorted(TRAINED))
def test_memory_order_does_not_matter(op):
    """Channels-last views and the like give the same derivatives."""
    for attrs, arrays in cases_of(op):
        spec, rng = get(op), np.random.default_rng(1)
        parsed = parse_attrs(spec.attrs, attrs, op)
        grads = cotangents(rng, spec.reference(parsed, *arrays), np.float32)
        turned = [a.T.copy().T if is_float(a) else a for a in arrays]
        expected = run_vjp(spec, parsed, arrays, grads)
        found = run_vjp(spec, parsed, turned, [None if g is None else g.T.copy().T for g in grads])
        for a, b in zip(expected, found, strict=True):
            assert (a is None) is (b is None)
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def drawn_cases(op: str) -> list:
    drawn = []

    @settings(max_examples=8, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CASES[op])
    def draw(case: Case):
        drawn.append((case.attrs, case.arrays))

    draw()
    return drawn


def cases_of(op: str) -> list:
    """The listed cases of an operator, and some that are drawn."""
    place: Callable = DOMAINS.get(op, lambda x, _: x)
    found = [(attrs, arrays) for attrs, *arrays in (*ONNX_CASES.get(op, []), *MORE.get(op, []))]
    if op in CASES:
        found += drawn_cases(op)
    return [
        (attrs, [place(a, i).astype(a.dtype) if is_float(a) else a for i, a in enumerate(arrays)])
        for attrs, arrays in found
        if any(map(is_float, arrays))
    ]


def test_training_goes_through_every_operator_but_those_listed():
    listed = [name for names in WITHOUT.values() for name in names.split()]
    assert sorted(listed) == sorted(set(all_ops()) - TRAINED)
    quantized = {name for name, spec in all_ops().items() if spec.rule is not None}
    assert quantized <= TRAINED


REFUSED = {
    "clip": ("rnn", {"clip": 1.0}),
    "activations": ("rnn", {"activations": ("Softsign",)}),
    "input_forget": ("lstm", {"input_forget": True}),
    "linear_before_reset": ("gru", {"linear_before_reset": False}),
    "reduction 'max'": ("scatter_nd", {"reduction": "max"}),
}


@pytest.mark.parametrize("option", sorted(REFUSED))
def test_options_without_a_derivative_are_named(option):
    op, more = REFUSED[option]
    attrs, *arrays = (MORE if op in ("lstm", "gru", "rnn") else ONNX_CASES)[op][0]
    spec = get(op)
    parsed = parse_attrs(spec.attrs, {**attrs, **more}, op)
    outputs = spec.reference(parsed, *arrays)
    with pytest.raises(ModelError, match=option):
        run_vjp(spec, parsed, arrays, [np.ones_like(y) for y in outputs])


def test_peepholes_are_refused_and_singular_matrices():
    attrs, *arrays = MORE["lstm"][0]
    spec = get("lstm")
    parsed = parse_attrs(spec.attrs, attrs, "lstm")
    arrays = [*arrays, np.ones((1, 12), np.float32)]
    with pytest.raises(ModelError, match="peepholes"):
        run_vjp(spec, parsed, arrays, [None] * 3)
    with pytest.raises(DataError, match="singular"):
        run_vjp(get("det"), None, [np.ones((2, 2))], [np.array(1.0)])
