"""The operators that came with ONNX, without the onnx package: inference, messages, run-time sizes, constants."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_onnx_cases import ONNX_CASES

from qtool.engine import reference
from qtool.engine.session import Session
from qtool.engine.shapes import concrete_shapes
from qtool.errors import DataError, ModelError
from qtool.ir import DType, Node, TensorType
from qtool.ops import Builder, all_ops, attrs_of, check_types, get, infer_node, parse_attrs, plain_attrs
from qtool.passes import clean, optimize

LISTED = [(op, number) for op, cases in sorted(ONNX_CASES.items()) for number in range(len(cases))]
IDS = [f"{op}-{number}" for op, number in LISTED]


def parts(op: str, number: int):
    attrs, *arrays = ONNX_CASES[op][number]
    names = tuple("" if array is None else f"i{i}" for i, array in enumerate(arrays))
    return Node(op, "node", names, ("y",), MappingProxyType(attrs)), arrays


def types(arrays, values: bool = False, symbols: bool = False):
    return [
        None
        if array is None
        else TensorType(
            DType.of(array),
            tuple(f"S{i}.{axis}" if symbols else n for axis, n in enumerate(array.shape)),
            array if values else None,
        )
        for i, array in enumerate(arrays)
    ]


def agrees(inferred, outputs) -> None:
    assert len(inferred) == len(outputs)
    for type_, array in zip(inferred, outputs, strict=True):
        assert type_.dtype is DType.of(array)
        assert len(type_.shape) == array.ndim
        assert all(isinstance(dim, str) or dim == n for dim, n in zip(type_.shape, array.shape, strict=True))
        assert type_.value is None or np.array_equal(type_.value, array)


@pytest.mark.parametrize(("op", "number"), LISTED, ids=IDS)
def test_inference_agrees_with_the_reference(op, number):
    node, arrays = parts(op, number)
    copies = [None if array is None else array.copy() for array in arrays]
    outputs = get(op).reference(attrs_of(node), *arrays)
    assert all(a is None or np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))
    agrees(infer_node(node, types(arrays)), outputs)
    exact = infer_node(node, types(arrays, values=True))
    agrees(exact, outputs)
    if op not in ("non_zero", "compress", "unique", "non_max_suppression"):  # whose sizes only a run knows
        assert [type_.shape for type_ in exact] == [array.shape for array in outputs]
    attrs = attrs_of(node)
    assert parse_attrs(get(op).attrs, plain_attrs(attrs), op) == attrs


@pytest.mark.parametrize(("op", "number"), LISTED, ids=IDS)
def test_symbols_are_taken_for_activations(op, number):
    """Every size of the first input a symbol: inference knows less then, but nothing wrong."""
    node, arrays = parts(op, number)
    if op in ("squeeze_to", "max_unpool", "gather_nd", "range", "constant_of_shape", "dft") or op.endswith("_window"):
        pytest.skip("needs the sizes of its input")
    known = types(arrays)
    known[0] = types(arrays, symbols=True)[0]
    agrees(infer_node(node, known), get(op).reference(attrs_of(node), *arrays))


FLOAT32_ONLY = ("bit_cast", "dynamic_quantize_linear")


@pytest.mark.parametrize(("op", "number"), LISTED, ids=IDS)
def test_other_floats_are_computed_in_their_own_type(op, number):
    node, arrays = parts(op, number)
    if not any(array is not None and array.dtype == np.float32 for array in arrays) or op in FLOAT32_ONLY:
        pytest.skip("no floats")
    outputs = get(op).reference(attrs_of(node), *arrays)
    wide = [a.astype(np.float64) if a is not None and a.dtype == np.float32 else a for a in arrays]
    if op == "resize":
        wide[1:] = arrays[1:]
    results = get(op).reference(attrs_of(node), *wide)
    agrees(infer_node(node, types(wide)), results)
    for got, expected in zip(results, outputs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


PLAIN = st.sampled_from(
    [-(2**70), -2, -1, 0, 1, 2, 3, 9, 10**12, 0.5, 1e300, True, None, "", "none", "SAME_UPPER", "..."]
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=5)
DIMS = st.sampled_from([0, 1, 2, 3, 4, 10**12, "N", "N*4", "?x.0", "", "*"])
SHAPES = st.lists(DIMS, max_size=5).map(tuple)
NUMBERS = st.lists(st.sampled_from([-(2**63), -9, -1, 0, 1, 2, 3, 2**62]), max_size=4).map(
    lambda n: np.array(n, np.int64)
)
TYPES = st.builds(TensorType, st.sampled_from(DType), SHAPES) | NUMBERS.map(
    lambda array: TensorType(DType.INT64, array.shape, array)
)


@pytest.mark.parametrize("op", sorted(op for op, cases in ONNX_CASES.items() if cases))
def test_nothing_but_a_model_error_comes_out_of_inference(op):
    """Good cases with one attribute or one input changed at random."""
    fields = [field.name for field in dataclasses.fields(get(op).attrs)]

    @settings(max_examples=60)
    @given(st.data())
    def check(data):
        node, arrays = parts(op, data.draw(st.integers(0, len(ONNX_CASES[op]) - 1)))
        found, attrs = types(arrays, values=data.draw(st.booleans())), dict(node.attrs)
        if fields and data.draw(st.booleans()):
            attrs[data.draw(st.sampled_from(fields))] = data.draw(VALUES)
        else:
            found[data.draw(st.integers(0, len(found) - 1))] = data.draw(TYPES | st.none())
        names = tuple("" if type_ is None else f"i{i}" for i, type_ in enumerate(found))
        try:
            outputs = infer_node(Node(op, "node", names, ("y",), attrs), found)
        except ModelError:
            return
        assert all(isinstance(type_, TensorType) for type_ in outputs)
        assert all("?" not in str(dim).split("*") for type_ in outputs for dim in type_.shape)

    check()


def test_what_a_run_decides_is_left_open():
    b = Builder("open")
    x = b.input("x", ("N", 4))
    found = b.node("non_zero", [b.node("greater", [x, b.param("half", np.array(0.5, np.float32))])], "found")
    y = b.node("permute", [found], "y", dims=(1, 0))
    y = b.node("cast", [y], "floats", to="float32")
    graph = b.finish([b.node("relu", [y], "last")])
    check_types(graph)
    assert graph.values["last"].shape == ("?found.1", 2)
    assert "last" not in concrete_shapes(graph, {"x": (3, 4)})
    feeds = {"x": np.eye(3, 4, dtype=np.float32)}
    session = Session(graph)
    assert session.fallbacks["last"] in ("its shapes depend on the data", "the native engine is not used")
    assert session.run(feeds)["last"].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_arithmetic_on_shapes_is_done_before_the_run():
    """reshape(x, [size of axis 0, -1]) written out, as exporters do."""
    b = Builder("shapes")
    x = b.input("x", ("N", 4, 6))
    size = b.node("gather", [b.node("shape", [x]), b.param("zero", np.array([0]))], "size")
    shape = b.node("cat", [size, b.param("rest", np.array([-1]))], "target", dim=0)
    y = b.node("reshape_to", [x, shape], "y")
    graph = b.finish([b.node("relu", [y], "last")])
    check_types(graph)
    assert graph.values["y"].shape == ("?y.0", "?y.1")
    assert concrete_shapes(graph, {"x": (5, 4, 6)})["last"] == (5, 24)
    session = Session(graph)
    assert "last" not in session.fallbacks or not session.isa
    for batch in (1, 3):
        feed = np.full((batch, 4, 6), -1.0, np.float32)
        assert session.run({"x": feed})["last"].shape == (batch, 24)
        assert reference.run(graph, {"x": feed})["last"].shape == (batch, 24)


def test_a_folded_constant_may_say_more_than_was_known():
    b = Builder("folded")
    x = b.input("x", (2, 6))
    shape = b.node("neg", [b.param("minus", np.array([-3, -4]))], "shape")
    graph = b.finish([b.node("reshape_to", [x, shape], "y")])
    assert graph.values["y"].shape == ("?y.0", "?y.1")
    folded = clean(graph)
    check_types(folded)
    assert [node.op for node in folded.nodes] == ["reshape_to"]
    assert reference.run(folded, {"x": np.zeros((2, 6), np.float32)})["y"].shape == (3, 4)


F32 = DType.FLOAT32
BAD = [
    ("gather", [f32 := (4, 3), f32], {}, "got float32 as indices, expected int64 or int32"),
    ("gather_nd", [(4, 3), None], {}, "got 2 inputs"),
    ("einsum", [(4, 3), (4, 3)], {"equation": "ij,jk->ik"}, "that can be broadcast"),
    ("einsum", [(4, 3)], {"equation": "ij->k"}, "letters of the inputs on the right"),
    ("einsum", [(4, 3)], {"equation": "i1->i"}, "expected letters"),
    (
        "lstm",
        [(5, 2, 3), (1, 16, 3), (1, 16, 5)],
        {"hidden_size": 4},
        r"r of shape \(1, 16, 5\), expected \(1, 16, 4\)",
    ),
    (
        "lstm",
        [(5, 2, 3), (1, 16, 3), (1, 16, 4)],
        {"hidden_size": 4, "activations": ("Swish",) * 3},
        "expected 3 of relu",
    ),
    ("resize", [(1, 1, 4, 4)], {}, "expected one of them"),
    ("cast", [(3,)], {"to": "complex64"}, "got element type 'complex64'"),
    ("max_pool", [(1, 1, 3, 3)], {"kernel_shape": (5, 5)}, "expected one that fits"),
    ("conv_transpose2d", [(1, 4, 3, 3), (3, 4, 2, 2)], {}, "got 4 input channels, expected 3"),
    ("depth_to_space", [(1, 6, 2, 2)], {"blocksize": 2}, "got 6 channels, expected a multiple of 4"),
    ("group_norm", [(1, 6, 2), (6,), (6,)], {"num_groups": 4}, "4 groups of 6 channels"),
    ("and", [(3,), (3,)], {}, "got float32 as a, expected bool"),
    ("top_k", [(3,), (1,)], {}, "got float32 as k"),
]


@pytest.mark.parametrize(("op", "shapes", "attrs", "message"), BAD)
def test_what_does_not_fit_is_told(op, shapes, attrs, message):
    found = [None if shape is None else TensorType(F32, shape) for shape in shapes]
    names = tuple("" if shape is None else f"i{i}" for i, shape in enumerate(shapes))
    with pytest.raises(ModelError, match=message) as caught:
        infer_node(Node(op, "node", names, ("y",), attrs), found)
    assert f"{op} 'node'" in str(caught.value)


WRONG_DATA = [
    ("gather", {}, [np.zeros((3, 2), np.float32), np.array([3])], "got indices from 3 to 3, expected -3 to 2"),
    ("reshape_to", {}, [np.zeros(6, np.float32), np.array([4, -1])], "as many elements"),
    ("top_k", {}, [np.zeros(3, np.float32), np.array([4])], "got k 4"),
    ("range", {}, [np.array(0), np.array(3), np.array(0)], "got a step of 0"),
    ("constant_of_shape", {}, [np.array([2**20, 2**20])], "expected at most"),
    ("split_to", {"outputs": 2}, [np.zeros(5, np.float32), np.array([2, 2])], "got sizes"),
]


@pytest.mark.parametrize(("op", "attrs", "arrays", "message"), WRONG_DATA, ids=[case[0] for case in WRONG_DATA])
def test_data_that_do_not_fit_are_told(op, attrs, arrays, message):
    spec = get(op)
    with pytest.raises(DataError, match=message):
        spec.reference(parse_attrs(spec.attrs, attrs, op), *arrays)


def test_integers_are_divided_as_in_c():
    a, b = np.array([7, -7, 7, -7, 5], np.int32), np.array([2, 2, -2, -2, 0], np.int32)
    (y,) = get("div").reference(get("div").attrs(), a, b)
    assert y[:4].tolist() == [3, -3, -3, 3]
    assert y.dtype == np.int32


@pytest.mark.parametrize("dtype", ["float16", "float64", "int16", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("op", ["reshape", "permute", "slice", "cat"])
def test_every_element_type_moves_through_a_session(op, dtype):
    b = Builder("moves")
    x = b.input("x", ("N", 3, 4), DType(dtype))
    attrs = {
        "reshape": {"shape": (-1, 12)},
        "permute": {"dims": (0, 2, 1)},
        "slice": {"dim": 1, "end": 2},
        "cat": {"dim": 1},
    }
    graph = b.finish([b.node(op, [x, x] if op == "cat" else [x], "y", **attrs[op])])
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    got = Session(graph).run({"x": array})["y"]
    expected = reference.run(graph, {"x": array})["y"]
    assert got.dtype == expected.dtype == np.dtype(dtype)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_layers_run_in_other_floats(dtype):
    rng = np.random.default_rng(1)
    b = Builder("layers")
    x = b.input("x", ("N", 3, 6, 6), DType(dtype))
    y = b.node("conv2d", [x, b.param("w", rng.standard_normal((4, 3, 3, 3)).astype(dtype))], "conv")
    statistics = [b.param(n, np.abs(rng.standard_normal(4)).astype(dtype)) for n in ("mean", "var", "scale", "bias")]
    y = b.node("batch_norm", [y, *statistics], "bn")
    for op, attrs in (
        ("relu", {}),
        ("hardswish", {}),
        ("sigmoid", {}),
        ("clamp", {"low": 0.1, "high": 0.9}),
        ("gelu", {}),
    ):
        y = b.node(op, [y], op, **attrs)
    y = b.node("avg_pool2d", [y], "pool", kernel_size=(2, 2), stride=(2, 2))
    y = b.node("softmax", [b.node("mean", [b.node("add", [y, y], "add")], "mean", dim=(2, 3))], "softmax", dim=1)
    graph = b.finish([y])
    check_types(graph)
    feed = rng.standard_normal((2, 3, 6, 6)).astype(dtype)
    got = Session(graph).run({"x": feed})["softmax"]
    assert got.dtype == np.dtype(dtype)
    tolerance = 1e-2 if dtype == "float16" else 1e-9
    np.testing.assert_allclose(got.sum(1), np.ones(2), rtol=tolerance)
    better = optimize(graph)
    assert not any(node.op == "batch_norm" for node in better.nodes)
    np.testing.assert_allclose(Session(better).run({"x": feed})["softmax"], got, rtol=tolerance, atol=tolerance)


def test_all_operators_have_a_reference_and_a_description():
    for spec in all_ops().values():
        assert callable(spec.reference)
        assert callable(spec.infer)
