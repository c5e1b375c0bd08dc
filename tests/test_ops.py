"""The operator records without PyTorch: inference against the references' real shapes, and messages."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import CASES, Case
from op_onnx_cases import ONNX_CASES

from qtool.errors import DataError, ModelError
from qtool.ir import DType, Node, TensorType
from qtool.ops import QuantRule, all_ops, get, infer_node, operator_table, parse_attrs, plain_attrs, register
from qtool.ops.dims import broadcast, divide, product


def node_of(case: Case) -> Node:
    names = tuple("" if array is None else f"i{i}" for i, array in enumerate(case.arrays))
    outputs = len(case.attrs["split_sizes"]) if case.op == "split" else 1
    return Node(case.op, "node", names, tuple(f"o{i}" for i in range(outputs)), case.attrs)


def types_of(case: Case, batch: str | None = None) -> list[TensorType | None]:
    """The inputs' types, with axis 0 of the batched ones replaced by a symbol."""
    types: list[TensorType | None] = []
    for position, array in enumerate(case.arrays):
        if array is None:
            types.append(None)
            continue
        known = batch is None or position not in case.batched
        types.append(TensorType(DType.of(array), array.shape if known else (batch, *array.shape[1:])))
    return types


def run(case: Case):
    return get(case.op).reference(parse_attrs(get(case.op).attrs, case.attrs, case.op), *case.arrays)


def evaluate(dim: int | str, batch: int) -> int:
    return dim if isinstance(dim, int) else math.prod(batch if part == "N" else int(part) for part in dim.split("*"))


def test_every_operator_has_cases():
    assert set(CASES) | set(ONNX_CASES) == set(all_ops())
    assert not set(CASES) & set(ONNX_CASES)


@pytest.mark.parametrize("op", sorted(CASES))
def test_inferred_types_are_those_of_the_reference(op: str):
    @settings(max_examples=40)
    @given(CASES[op])
    def check(case: Case):
        inferred = infer_node(node_of(case), types_of(case))
        outputs = run(case)
        assert [t.shape for t in inferred] == [array.shape for array in outputs]
        assert [t.dtype for t in inferred] == [DType.of(array) for array in outputs]

    check()


@pytest.mark.parametrize("op", sorted(set(CASES) - {"matmul"}))
def test_a_symbolic_batch_is_kept(op: str):
    kept = []

    @settings(max_examples=40)
    @given(CASES[op].filter(lambda case: case.batched))
    def check(case: Case):
        inferred = infer_node(node_of(case), types_of(case, "N"))
        batch = case.arrays[case.batched[0]].shape[0]
        got = [tuple(evaluate(dim, batch) for dim in t.shape) for t in inferred]
        assert got == [array.shape for array in run(case)]
        kept.append(any(isinstance(dim, str) for t in inferred for dim in t.shape))

    check()
    assert any(kept)  # not every case may have reduced the batch away


@pytest.mark.parametrize("op", sorted(CASES))
def test_inputs_are_not_changed_and_attributes_survive_a_round_trip(op: str):
    @settings(max_examples=10)
    @given(CASES[op])
    def check(case: Case):
        copies = [None if array is None else array.copy() for array in case.arrays]
        run(case)
        for array, copy in zip(case.arrays, copies, strict=True):
            assert array is copy or np.array_equal(array, copy)
        attrs = parse_attrs(get(op).attrs, case.attrs, op)
        assert parse_attrs(get(op).attrs, plain_attrs(attrs), op) == attrs

    check()


@pytest.mark.parametrize("op", ["relu", "sigmoid", "tanh", "hardswish", "gelu", "silu", "elu", "softmax"])
def test_extreme_inputs_give_no_warning_and_no_nan(op: str):
    x = np.array([[-3e38, -1e4, -100, -0.0, 0.0, 100, 1e4]], np.float32)
    (y,) = get(op).reference(parse_attrs(get(op).attrs, {"dim": 1} if op == "softmax" else {}, op), x)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("spec", all_ops().values(), ids=lambda spec: spec.name)
def test_a_record_is_consistent(spec):
    assert dataclasses.is_dataclass(spec.attrs)
    assert spec.attrs.__dataclass_params__.frozen
    assert spec.kernel in ("", spec.name)
    assert (spec.fixed is not None) == (spec.rule is QuantRule.FIXED)
    for position, name in ((spec.weight, "weight"), (spec.bias, "bias?")):
        assert position is None or spec.inputs[position] == name
    assert (spec.weight is not None) == (spec.rule is QuantRule.ACCUMULATE or spec.name == "linear_dynamic")
    assert all(all_ops()[spec.dynamic_of].inputs[at] == spec.inputs[at] for at in spec.weights)
    optional = [name.endswith(("?", "*")) for name in spec.inputs]
    assert optional == sorted(optional)


def test_the_table_has_a_row_an_operator():
    lines = operator_table().splitlines()
    assert len(lines) == len(all_ops()) + 2
    assert len({len(line) for line in lines}) == 1
    assert [line.split("`")[1] for line in lines[2:]] == sorted(all_ops())
    assert next(line for line in lines if "`tanh`" in line).split("|")[5].strip() == "fixed (1/128, 128)"


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="relu is registered twice"):
        register(get("relu"))


F32 = DType.FLOAT32
X = ("N", 4, 8, 8)
W = (6, 4, 3, 3)
MESSAGES = [
    ("nonsense", [X], {}, "operator 'nonsense' is not known"),
    ("relu", [], {}, "relu 'node': got 0 inputs, expected x"),
    ("relu", [X, X], {}, "got 2 inputs, expected x"),
    ("relu", [X], {"slope": 1}, "unknown attribute 'slope'; expected none"),
    ("softmax", [X], {}, "attribute 'dim' is missing"),
    ("softmax", [X], {"dim": 4}, r"got dim 4, expected one in \[-4, 4\) for a tensor of rank 4"),
    ("conv2d", [X, W], {"stride": 2}, "attribute 'stride' is 2; expected tuple"),
    ("conv2d", [X, W], {"stride": (1, 1, 1)}, "attribute 'stride'"),
    ("conv2d", [X, W], {"groups": True}, "attribute 'groups' is True; expected int"),
    ("conv2d", [X, W], {"groups": 10**30}, "attribute 'groups' is 10+; expected int"),
    ("conv2d", [X, W], {"padding_mode": "mirror"}, "'padding_mode' is 'mirror'; expected Literal"),
    ("conv2d", [X, W], {"stride": (0, 1)}, r"got stride \(0, 1\), expected at least 1"),
    ("conv2d", [X, W], {"padding": ((0, -1), (0, 0))}, "got padding .* expected at least 0"),
    ("conv2d", [X, W], {"padding": ((0, 0), (8, 0)), "padding_mode": "reflect"}, r"reflect padding \(8, 0\) of size 8"),
    ("conv2d", [X, W], {"padding": ((0, 9), (0, 0)), "padding_mode": "circular"}, "circular padding .* at most 8"),
    ("conv2d", [X, W], {"groups": 2}, r"got 4 input channels, expected 8 \(weight 4 x groups 2\)"),
    ("conv2d", [X, (5, 2, 3, 3)], {"groups": 2}, "got 5 output channels, expected a multiple of groups 2"),
    ("conv2d", [X, (6, 4, 9, 3)], {}, r"got a kernel of \(9, 3\) over \(8, 8\) padded by .*, expected one that fits"),
    ("conv2d", [X, W, (5,)], {}, r"got bias of shape \(5\), expected \(6\)"),
    ("conv2d", [X, W, None, ("N", 6, 8, 8)], {}, r"got residual of shape \(N, 6, 8, 8\), expected \(N, 6, 6, 6\)"),
    ("conv2d", [("N", 4, 8), W], {}, r"got x of shape \(N, 4, 8\), expected rank 4, NCHW"),
    ("conv2d", [X, W], {"activation": "clamp"}, "activation clamp without clamp"),
    ("conv2d", [X, W], {"activation": "relu", "clamp": (0.0, 6.0)}, "with activation relu, expected clamp None"),
    ("conv2d", [X, W], {"activation": "clamp", "clamp": (6.0, 0.0)}, "got limits 6.0 and 0.0, expected low <= high"),
    ("conv2d", [None, W], {}, "got 2 inputs, expected x, weight"),
    ("linear", [("N", 5), (3, 4)], {}, r"got x of shape \(N, 5\), expected 4 as its last size"),
    ("linear", [("N", 4), (3, 4, 1)], {}, "expected rank 2"),
    ("matmul", [(2, 3), (4, 5)], {}, r"got shapes \(2, 3\) and \(4, 5\)"),
    ("batch_norm", [X, (3,), (4,)], {}, r"running_mean of shape \(3\), expected \(4\)"),
    ("batch_norm", [X, (4,), (4,)], {"eps": -1.0}, "got eps -1.0"),
    ("batch_norm", [X, (4,), (4,)], {"eps": float("nan")}, "'eps' is nan; expected float"),
    ("layer_norm", [X], {"normalized_shape": (7,)}, r"expected \(7\) as its last sizes"),
    ("clamp", [X], {"low": 2.0, "high": 1.0}, "got limits 2.0 and 1.0"),
    ("clamp", [X], {"low": 0.0, "high": 1e39}, "attribute 'high' is 1e[+]39; expected float"),
    ("prelu", [X, (3,)], {}, r"weight of shape \(3\), expected \(4\)"),
    ("add", [("N", 3), ("N", 4)], {}, r"got shapes \(N, 3\) and \(N, 4\), expected shapes that can be broadcast"),
    ("add", [("N", 3), (2, 4)], {}, "broadcast together"),
    ("cat", [], {}, "expected at least one"),
    ("cat", [X, ("N", 4, 8, 7)], {"dim": 1}, "expected equal ones but for axis 1"),
    ("cat", [X, ("N", 4, 8)], {"dim": 0}, "expected one rank"),
    ("max_pool2d", [X], {"kernel_size": (2, 2)}, "attribute 'stride' is missing"),
    ("max_pool2d", [X], {"kernel_size": (2, 0), "stride": (1, 1)}, r"got kernel_size \(2, 0\)"),
    ("max_pool2d", [X], {"kernel_size": (2, 2), "stride": (1, 1), "padding": ((0, 2), (0, 0))}, "less than the kernel"),
    ("avg_pool2d", [X], {"kernel_size": (9, 9), "stride": (1, 1)}, "expected one that fits"),
    ("avg_pool2d", [X], {"kernel_size": (2, 2), "stride": (1, 1), "divisor_override": 0}, "divisor_override 0"),
    ("adaptive_avg_pool2d", [X], {"output_size": (0, 1)}, "expected at least 1"),
    ("pad", [X], {"pad": (1,)}, "a pair an axis"),
    ("pad", [X], {"pad": (-4, -4)}, "at least one element left"),
    ("pad", [X], {"pad": (-1, 0), "mode": "reflect"}, "in mode reflect, expected at least 0"),
    ("flatten", [X], {"start_dim": 2, "end_dim": 1}, "start_dim not after end_dim"),
    ("reshape", [X], {"shape": (-1, -1)}, "at most one -1"),
    ("reshape", [X], {"shape": (-1, 0)}, "positive sizes"),
    (
        "reshape",
        [(4, 8, 8)],
        {"shape": (-1, 100)},
        r"got x of shape \(4, 8, 8\) to be \(-1, 100\), expected as many elements",
    ),
    ("reshape", [(4, 8, 8)], {"shape": (1, 255)}, "as many elements"),
    ("permute", [X], {"dims": (0, 1, 2)}, "expected every axis once"),
    ("permute", [X], {"dims": (0, 1, 2, 2)}, "expected each axis once"),
    ("transpose", [X], {"dim0": 0, "dim1": -5}, "got dim -5"),
    ("squeeze", [X], {"dim": (0,)}, "got the unknown size N as the size to squeeze"),
    ("slice", [X], {"dim": 1, "start": 4}, "at least one element left"),
    ("slice", [X], {"dim": 1, "step": 0}, "got step 0"),
    ("split", [X], {"dim": 1, "split_sizes": (2, 3)}, r"split_sizes \(2, 3\) of size 4"),
    ("mean", [X], {"dim": (1, -3)}, "expected each axis once"),
    ("embedding", [X, (4, 4)], {}, "got float32 as ids, expected int64 or int32"),
]


@pytest.mark.parametrize(("op", "shapes", "attrs", "message"), MESSAGES)
def test_bad_shapes_and_attributes_are_told(op, shapes, attrs, message):
    types = [None if shape is None else TensorType(F32, shape) for shape in shapes]
    names = tuple("" if shape is None else f"i{i}" for i, shape in enumerate(shapes))
    with pytest.raises(ModelError, match=message) as caught:
        infer_node(Node(op, "node", names, ("y",), attrs), types)
    assert op in str(caught.value)


DIMS = st.sampled_from([0, 1, 2, 3, 4, 8, 10**12, "N", "N*4", "M*N", "", "*", "4", "N*" + "7" * 30])
SHAPES = st.lists(DIMS, max_size=5).map(tuple)
TYPES = st.builds(TensorType, st.sampled_from(DType), SHAPES) | st.builds(TensorType, st.just(F32), SHAPES)
NUMBERS = st.sampled_from([-(2**70), -2, -1, 0, 1, 2, 3, 8, 10**12, 2**70, 0.5, -1.0, 1e300, math.inf, math.nan])
PLAIN = (
    NUMBERS | st.booleans() | st.none() | st.sampled_from(["none", "relu", "clamp", "constant", "reflect", "circular"])
)
WHOLE = st.integers(-3, 9)
FITTING = WHOLE | st.tuples(WHOLE) | st.tuples(WHOLE, WHOLE) | st.lists(st.tuples(WHOLE, WHOLE), max_size=2).map(tuple)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=6)


@pytest.mark.parametrize("spec", [all_ops()[op] for op in sorted(CASES)], ids=lambda spec: spec.name)
def test_nothing_but_a_model_error_comes_out_of_inference(spec):
    """Good cases with one attribute or one input changed at random."""
    fields = [field.name for field in dataclasses.fields(spec.attrs)]

    @settings(max_examples=50)
    @given(st.data())
    def check(data):
        case = data.draw(CASES[spec.name])
        types, attrs = types_of(case, "N"), dict(case.attrs)
        if fields and data.draw(st.booleans()):
            attrs[data.draw(st.sampled_from(fields))] = data.draw(FITTING | VALUES)
        else:
            types[data.draw(st.integers(0, len(types) - 1))] = data.draw(TYPES | st.none())
        names = tuple("" if found is None else f"i{i}" for i, found in enumerate(types))
        try:
            outputs = infer_node(Node(spec.name, "node", names, ("y",), attrs), types)
        except ModelError:
            return
        assert all(isinstance(found, TensorType) and 0 not in found.shape for found in outputs)

    check()


def test_tensors_without_elements_are_refused():
    for op, shape, attrs in (("relu", ("N", 0), {}), ("slice", (4,), {"start": 3, "end": 3})):
        with pytest.raises(ModelError, match=f"{op} 'node': got"):
            infer_node(Node(op, "node", ("x",), ("y",), attrs), [TensorType(F32, shape)])


def test_operators_that_compute_want_float32():
    with pytest.raises(ModelError, match="conv2d 'c': got uint8 as x, expected float32"):
        infer_node(Node("conv2d", "c", ("x", "w"), ("y",)), [TensorType(DType.UINT8, X), TensorType(F32, W)])
    (moved,) = infer_node(Node("flatten", "f", ("x",), ("y",)), [TensorType(DType.INT64, ("N", 2, 3))])
    assert moved == TensorType(DType.INT64, ("N", 6))


def test_embedding_refuses_ids_that_are_no_rows():
    table = np.zeros((3, 2), np.float32)
    for bad in (-1, 3):
        with pytest.raises(DataError, match="expected 0 to 2"):
            get("embedding").reference(get("embedding").attrs(), np.array([0, bad]), table)


def test_sizes_that_only_a_run_knows_get_a_name():
    (wide,) = infer_node(
        Node("conv2d", "c", ("x", "w"), ("y*",)), [TensorType(F32, ("N", 4, "H", 8)), TensorType(F32, W)]
    )
    assert wide.shape == ("N", 6, "?y.2", 6)
    (joined,) = infer_node(Node("cat", "c", ("a", "b"), ("y",), {"dim": 0}), [TensorType(F32, X)] * 2)
    assert joined.shape == ("?y.0", 4, 8, 8)
    (halved,) = infer_node(Node("reshape", "r", ("x",), ("y",), {"shape": (-1, 100)}), [TensorType(F32, X)])
    assert halved.shape == ("?y.0", 100)
    assert broadcast(("N", 3), (2, 3)) == (2, 3)
    assert broadcast(("N", 3), ("M", 1)) == ("?", 3)


def test_sizes_multiply_and_divide():
    assert product(("N", 7, 7)) == "N*49"
    assert product(("N*49", 2, "M")) == "M*N*98"
    assert product(()) == 1
    assert product(("N", 0)) == 0
    assert divide("N*49", 7) == "N*7"
    assert divide("N*49", "N") == 49
    assert divide("N*49", 49) == "N"
    assert divide("N*49", 5) is None
    assert divide(49, "N") is None
    assert broadcast(("N", 1, 3), (4, 1)) == ("N", 4, 3)
    with pytest.raises(ModelError, match="a size with 5000 digits"):
        product(("N*" + "9" * 5000,))
