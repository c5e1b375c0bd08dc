"""Broken and hostile .onnx files: a ModelError and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from qtool.errors import ModelError  # noqa: E402
from qtool.frontends.onnx import import_onnx  # noqa: E402

RNG = np.random.default_rng(1)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = START


def small_model():
    weights = {
        "conv.weight": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "fc": RNG.standard_normal((144, 5)).astype(np.float32),
        "flat": np.array([0, -1], np.int64),
    }
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Conv", ["p", "conv.weight"], ["c"], strides=[1, 1]),
        helper.make_node("MaxPool", ["c"], ["m"], kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["m", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["g"], alpha=0.5),
        helper.make_node("Softmax", ["g"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def attempt(path):
    """Whether it could be read; anything but ModelError comes through."""
    try:
        import_onnx(path)
    except ModelError:
        return False
    return True


def test_the_model_itself_is_read(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(small_model(), path)
    assert attempt(path)


@pytest.mark.parametrize("content", [b"", b"\x08", b"PK\x03\x04", b"not a model at all" * 50, b"\xff" * 1000])
def test_other_files(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert not attempt(path)


def test_no_file_and_a_folder(tmp_path):
    assert not attempt(tmp_path / "none.onnx")
    assert not attempt(tmp_path)


def test_every_kind_of_damage(tmp_path):
    """Cut off anywhere, and with bytes changed anywhere."""
    path = tmp_path / "m.onnx"
    whole = small_model().SerializeToString()
    read = 0
    for _ in range(60):
        path.write_bytes(whole[: RNG.integers(1, len(whole))])
        read += attempt(path)
    for _ in range(250):
        damaged = bytearray(whole)
        for _ in range(int(RNG.integers(1, 4))):
            damaged[RNG.integers(len(damaged))] = RNG.integers(256)
        path.write_bytes(bytes(damaged))
        read += attempt(path)
    assert read < 310


def _with(change):
    model = small_model()
    change(model.graph)
    return model


def _set(graph, node, name, value):
    attribute = next(a for a in graph.node[node].attribute if a.name == name)
    attribute.CopyFrom(helper.make_attribute(name, value))


HOSTILE = {
    "huge shape": lambda g: g.initializer[0].dims.__setitem__(0, 2**62),
    "negative shape": lambda g: g.initializer[0].dims.__setitem__(0, -4),
    "zero strides": lambda g: _set(g, 1, "strides", [0, 0]),
    "too many strides": lambda g: _set(g, 1, "strides", [1, 1, 1]),
    "kernel of nothing": lambda g: _set(g, 2, "kernel_shape", [0, 0]),
    "huge kernel": lambda g: _set(g, 2, "kernel_shape", [2**60, 2**60]),
    "axis far out": lambda g: _set(g, 5, "axis", 2**40),
    "unknown input": lambda g: g.node[3].input.__setitem__(0, "nowhere"),
    "a cycle": lambda g: g.node[0].input.__setitem__(0, "y"),
    "no such operator": lambda g: setattr(g.node[2], "op_type", "Unheard"),
    "no outputs": lambda g: g.ClearField("output"),
    "output of nothing": lambda g: setattr(g.output[0], "name", "nothing"),
    "no rank": lambda g: g.input[0].type.tensor_type.ClearField("shape"),
    "text input": lambda g: setattr(g.input[0].type.tensor_type, "elem_type", TensorProto.STRING),
    "no type": lambda g: g.input[0].type.ClearField("tensor_type"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_makes_no_sense(tmp_path, change):
    path = tmp_path / "m.onnx"
    path.write_bytes(_with(change).SerializeToString())
    assert not attempt(path)


BOMBS = {
    "ConstantOfShape": (["shape"], {}),
    "Expand": (["one", "shape"], {}),
    "Tile": (["grid", "shape"], {}),
    "Range": (["zero", "far", "step"], {}),
    "OneHot": (["index", "far", "pair"], {}),
    "EyeLike": (["wide"], {}),
}


@pytest.mark.parametrize("op", BOMBS)
def test_small_files_that_would_fill_the_memory(tmp_path, op):
    """A constant of a few bytes that makes a huge one is not computed while importing."""
    arrays = {
        "shape": np.array([2**20, 2**19], np.int64),
        "one": np.ones((1, 1), np.float32),
        "grid": np.ones((1, 1), np.float32),
        "zero": np.array(0, np.int64),
        "far": np.array(2**39, np.int64),
        "step": np.array(1, np.int64),
        "index": np.array([1], np.int64),
        "pair": np.array([0.0, 1.0], np.float32),
        "wide": np.ones((1, 1), np.float32),
    }
    names, attrs = BOMBS[op]
    nodes = [helper.make_node(op, names, ["big"], **attrs), helper.make_node("Size", ["big"], ["y"])]
    tensors = [numpy_helper.from_array(arrays[name], name) for name in names]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, [])]
    model = helper.make_model(helper.make_graph(nodes, "bomb", [], outputs, tensors), ir_version=8)
    model.opset_import[0].version = 17
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    attempt(path)
