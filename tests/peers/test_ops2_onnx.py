"""The operators that came with ONNX, record by record, against the test cases of the onnx package itself."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
import warnings
from types import MappingProxyType

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx.backend.test.case.node import collect_testcases  # noqa: E402

from qtool.errors import ModelError  # noqa: E402
from qtool.ir import DType, Node, TensorType  # noqa: E402
from qtool.ops import all_ops, attrs_of, infer_node  # noqa: E402

pytestmark = pytest.mark.peers

RENAMED = {
    "PRelu": "prelu_broadcast", "Sum": "sum_of", "Mean": "mean_of", "Reshape": "reshape_to", "Slice": "slice_to",
    "Split": "split_to", "Squeeze": "squeeze_to", "Unsqueeze": "unsqueeze_to", "Pad": "pad_to", "Flatten": "flatten_to",
    "IsNaN": "is_nan", "GroupNormalization": "group_norm", "InstanceNormalization": "instance_norm",
    "RMSNormalization": "rms_norm", "SwiGLU": "swiglu", "Col2Im": "col2im", "QLinearMatMul": "qlinear_matmul",
    "TopK": "top_k",
    **dict.fromkeys(("Softmax", "Elu", "LeakyRelu", "Gelu", "Transpose", "Concat", "QLinearConv", "ConvInteger"), ""),
    **dict.fromkeys(("Identity", "Dropout", "BatchNormalization", "If", "Loop", "Scan"), ""),
}  # fmt: skip
"""ONNX operators whose record has another name; "" for those that the importer takes apart in some other way."""


def record_name(op: str) -> str:
    return RENAMED.get(op, re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[A-Z][a-z])", "_", op).lower())


@functools.cache
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return {
        case.name: case
        for case in found
        if len(case.model.graph.node) == 1
        and record_name(case.model.graph.node[0].op_type) in all_ops()
        and case.model.graph.node[0].domain == ""
        and "expanded" not in case.name
        and "opset19" not in case.name  # the axis of DFT was an attribute then
    }


def dtype_name(number: int) -> str:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number)).name


def attrs_for(name: str, node, outputs: int) -> dict:
    """The attributes as the record's dataclass wants them."""
    cls = all_ops()[name].attrs
    hints = typing.get_type_hints(cls)
    attrs = {}
    for attr in node.attribute:
        value = onnx.helper.get_attribute_value(attr)
        key = {"output_datatype": "dtype", "output_dtype": "dtype"}.get(attr.name, attr.name)
        if key not in hints:
            continue
        if isinstance(value, list):
            value = tuple(item.decode() if isinstance(item, bytes) else item for item in value)
        if isinstance(value, bytes):
            value = value.decode()
        if hints[key] is bool:
            value = bool(value)
        if key in ("to", "dtype"):
            value = dtype_name(value)
        attrs[key] = value
    if "outputs" in hints:
        attrs["outputs"] = outputs
    if name == "constant_of_shape":
        array = onnx.numpy_helper.to_array(onnx.helper.get_attribute_value(node.attribute[0]))
        attrs = {"value": array.reshape(()).item(), "dtype": array.dtype.name}
    return attrs


def supported(case) -> bool:
    """Whether qtool has the element types."""
    names = {dtype.value for dtype in DType}
    arrays = [array for inputs, outputs in case.data_sets for array in (*inputs, *outputs)]
    return all(isinstance(array, np.ndarray) and array.dtype.name in names for array in arrays)


def run_case(name: str) -> None:
    case = cases()[name]
    proto = case.model.graph.node[0]
    op = record_name(proto.op_type)
    node = Node(op, "node", tuple(proto.input), ("y",), MappingProxyType(attrs_for(op, proto, len(proto.output))))
    names = [value.name for value in case.model.graph.input]
    for inputs, expected in case.data_sets:
        given = dict(zip(names, inputs, strict=True))
        arrays = [given[i] if i else None for i in proto.input]
        spec = all_ops()[op]
        results = spec.reference(attrs_of(node), *arrays)
        vague = infer_node(node, [None if a is None else TensorType(DType.of(a), a.shape) for a in arrays])
        exact = infer_node(node, [None if a is None else TensorType(DType.of(a), a.shape, a) for a in arrays])
        for types in (vague, exact):
            check_types(types, results)
        wanted = [place for place, output in enumerate(proto.output) if output]
        for place, right in zip(wanted, expected, strict=True):
            got = results[place]
            assert got.dtype == right.dtype
            assert got.shape == right.shape
            np.testing.assert_allclose(got.astype(np.float64), right.astype(np.float64), rtol=1e-3, atol=1e-6)


def check_types(types, results) -> None:
    assert len(types) == len(results)
    for type_, result in zip(types, results, strict=True):
        assert type_.dtype is DType.of(result)
        assert len(type_.shape) == result.ndim
        assert all(isinstance(dim, str) or dim == size for dim, size in zip(type_.shape, result.shape, strict=True))
        assert type_.value is None or np.array_equal(type_.value, result)


def pytest_generate_tests(metafunc):
    if "case_name" in metafunc.fixturenames:
        metafunc.parametrize("case_name", sorted(cases()))


def test_a_record_gives_what_onnx_expects(case_name):
    if not supported(cases()[case_name]):
        pytest.skip("an element type that qtool does not have")
    run_case(case_name)


def test_most_of_the_cases_are_covered():
    assert sum(map(supported, cases().values())) >= 840


def test_nothing_is_named_in_vain():
    found = [all_ops()[record_name(case.model.graph.node[0].op_type)] for case in cases().values()]
    assert all(dataclasses.is_dataclass(spec.attrs) for spec in found)
    with pytest.raises(ModelError):
        infer_node(Node("nothing", "n", (), ("y",)), [])
