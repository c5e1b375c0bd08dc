"""ONNX models made here, as exporters write them, and what the import makes of them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from qtool.engine.reference import run  # noqa: E402
from qtool.errors import MissingExtraError, ModelError  # noqa: E402
from qtool.frontends.onnx import import_onnx  # noqa: E402
from qtool.passes import lower_qdq, simplify  # noqa: E402
from qtool.pipeline import load_model  # noqa: E402

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = START


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers):
    return np.array(numbers, np.int64)


def node(op, inputs, outputs, name="", **attrs):
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attrs)


def info(name, shape, kind=FLOAT):
    """With shape None it is there and says nothing: the import works shapes out by itself."""
    made = helper.make_tensor_value_info(name, kind, shape)
    made.type.tensor_type.shape.SetInParent()
    return made


def write(path, nodes, inputs, outputs, constants=None, opset=17):
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def ops(graph):
    return [n.op for n in graph.nodes]


def test_modules_of_pytorch_become_scopes(path):
    constants = {"layer1.0.conv1.weight": floats(4, 3, 3, 3), "layer1.0.conv1.bias": floats(4)}
    nodes = [
        node("Conv", "x layer1.0.conv1.weight layer1.0.conv1.bias", "c", "/layer1/layer1.0/conv1/Conv"),
        node("Relu", "c", "r", "/layer1/layer1.0/relu/Relu"),
        node("Add", "r r", "y", "/layer1/layer1.0/Add"),
    ]
    graph = import_onnx(write(path, nodes, [info("x", ["batch", 3, 8, 8])], [info("y", None)], constants))
    assert [(n.op, n.name, n.scope) for n in graph.nodes] == [
        ("conv2d", "layer1.0.conv1", "layer1.0.conv1"),
        ("relu", "layer1.0.relu", "layer1.0.relu"),
        ("add", "layer1.0.add", "layer1.0"),
    ]
    assert graph.nodes[0].inputs == ("x", "layer1.0.conv1.weight", "layer1.0.conv1.bias")
    assert [n.outputs for n in graph.nodes] == [("c",), ("r",), ("y",)]
    assert graph.values["x"].shape == ("N", 3, 8, 8)
    assert graph.values["y"].shape == ("N", 4, 6, 6)


@pytest.mark.parametrize(
    ("name", "weight", "scope"),
    [
        ("StatefulPartitionedCall/model/conv1/Conv2D", "w", "model.conv1"),
        ("Conv_12", "459", "Conv_12"),
        ("", "base_net.0.0.weight", "base_net.0.0"),
        ("/blocks/blocks.0/blocks.0.1/Conv", "onnx::Conv_3", "blocks.0.1"),
    ],
)
def test_scopes_of_other_exporters(path, name, weight, scope):
    constants = {weight: floats(4, 3, 1, 1)}
    inputs, outputs = [info("x", [1, 3, 4, 4])], [info("y", None)]
    graph = import_onnx(write(path, [node("Conv", f"x {weight}", "y", name)], inputs, outputs, constants))
    assert graph.nodes[0].scope == scope
    assert list(graph.initializers) == [f"{scope}.weight"]


def test_scopes_that_pytorch_records(path):
    conv = node("Conv", "x w", "y", "node_conv2d_1")
    conv.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'net', 'net.conv1', 'conv2d']")
    graph = import_onnx(write(path, [conv], [info("x", [1, 3, 4, 4])], [info("y", None)], {"w": floats(4, 3, 1, 1)}))
    assert graph.nodes[0].scope == "net.conv1"


def test_what_is_computed_from_sizes_becomes_numbers(path):
    """The reshape of ``x.view(x.size(0), -1)`` and of ``x.view(b, c // 2, 2, h, w)``, as PyTorch writes them."""
    constants = {"zero": ints(0), "i1": ints(1), "two": ints(2), "minus": ints(-1), "s2": ints(2), "e4": ints(4)}
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "b", axis=0),
        node("Gather", "s i1", "c", axis=0),
        node("Div", "c two", "half"),
        node("Slice", "s s2 e4", "hw"),
        node("Concat", "b half two hw", "target", axis=0),
        node("Reshape", "x target", "r"),
        node("Concat", "b minus", "flat", axis=0),
        node("Reshape", "r flat", "y"),
    ]
    graph = import_onnx(write(path, nodes, [info("x", ["n", 6, 5, 4])], [info("y", None)], constants))
    assert ops(graph) == ["reshape", "reshape"]
    assert [n.attrs["shape"] for n in graph.nodes] == [(-1, 3, 2, 5, 4), (-1, 120)]
    assert not graph.initializers
    x = floats(2, 6, 5, 4)
    assert (run(graph, {"x": x})["y"] == x.reshape(2, 120)).all()


def test_two_unknown_sizes_stay_in_the_graph(path):
    constants = {"heads": ints(2, -1)}
    nodes = [
        node("Shape", "x", "s", end=2),
        node("Concat", "s heads", "target", axis=0),
        node("Reshape", "x target", "y"),
    ]
    graph = import_onnx(write(path, nodes, [info("x", ["n", "t", 8])], [info("y", None)], constants))
    assert "reshape_to" in ops(graph)
    x = floats(3, 5, 8)
    assert (run(graph, {"x": x})["y"] == x.reshape(3, 5, 2, 4)).all()


def test_padding_of_its_own_is_folded_into_the_layer(path):
    """Pads that PyTorch writes as a chain of Concat, Reshape, Slice, Transpose and Cast."""
    constants = {"w": floats(4, 3, 3, 3), "p": ints(1, 2, 0, 1), "fill": ints(4), "shape": ints(-1, 2), "all": ints(-1)}
    constants |= {"start": ints(-1), "end": ints(-(2**63) + 1), "axis": ints(0), "step": ints(-1)}
    nodes = [
        node("ConstantOfShape", "fill", "zeros", value=helper.make_tensor("v", INT64, [1], [0])),
        node("Concat", "p zeros", "all_pads", axis=0),
        node("Reshape", "all_pads shape", "pairs"),
        node("Slice", "pairs start end axis step", "turned"),
        node("Transpose", "turned", "columns", perm=[1, 0]),
        node("Reshape", "columns all", "vector"),
        node("Cast", "vector", "pads", to=INT64),
        node("Pad", "x pads", "padded"),
        node("Conv", "padded w", "y"),
    ]
    graph = load_model(write(path, nodes, [info("x", [1, 3, 6, 6])], [info("y", None)], constants))
    assert ops(graph) == ["conv2d"]
    assert graph.nodes[0].attrs["padding"] == ((0, 1), (1, 2))


def test_a_linear_layer_of_matmul_and_add(path):
    constants = {"w": floats(8, 5), "b": floats(5)}
    nodes = [node("MatMul", "x w", "m", "/fc/MatMul"), node("Add", "b m", "y", "/fc/Add")]
    graph = load_model(write(path, nodes, [info("x", ["n", 3, 8])], [info("y", None)], constants))
    assert ops(graph) == ["linear"]
    assert graph.nodes[0].name == "fc"
    x = floats(2, 3, 8)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], x @ constants["w"] + constants["b"], rtol=1e-5, atol=1e-5)


def test_everything_unsupported_is_listed_at_once(path):
    nodes = [
        node("StringNormalizer", "t", "u", "norm"),
        node("RandomNormalLike", "x", "a", "first"),
        node("RandomNormalLike", "x", "b", "second"),
        node("Relu", "b", "y"),
    ]
    inputs = [info("x", [1, 2]), info("t", [1], TensorProto.STRING)]
    with pytest.raises(ModelError) as caught:
        import_onnx(write(path, nodes, inputs, [info("y", [1, 2])]))
    text = str(caught.value)
    assert "RandomNormalLike x2: the operator is not supported ('first', 'second')" in text
    assert "StringNormalizer x1" in text
    assert "element type string" in text
    assert "extract_model" in text
    assert "Relu" not in text


def test_functions_are_expanded(path):
    """Those of the model's own."""
    body = helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 21)])
    call = helper.make_node("Twice", ["x"], ["t"], domain="mine")
    norm = node("GroupNormalization", "t s b", "g", num_groups=2)
    nodes = [call, norm, node("CenterCropPad", "g shape", "y", axes=[2])]
    constants = {"s": np.ones(4, np.float32), "b": np.zeros(4, np.float32), "shape": ints(3)}
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "test", [info("x", [2, 4, 5])], [info("y", [2, 4, 3])], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10), path)
    imported = import_onnx(path)
    assert ops(imported)[0] == "add"
    x = floats(2, 4, 5)
    groups = (2 * x).reshape(2, 2, 10)
    expected = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(run(imported, {"x": x})["y"], expected.reshape(2, 4, 5)[:, :, 1:4], rtol=1e-4, atol=1e-5)


def _branch(name, op):
    return helper.make_graph([node(op, "x w", name)], name, [], [info(name, [2, 3])])


def test_branches_get_what_they_read_from_outside(path):
    chosen = node("If", "c", "y", then_branch=_branch("a", "Add"), else_branch=_branch("b", "Mul"))
    inputs = [info("c", [], BOOL), info("x", [2, 3])]
    graph = import_onnx(write(path, [chosen], inputs, [info("y", None)], {"w": floats(3)}))
    assert ops(graph) == ["if"]
    assert graph.nodes[0].inputs == ("c", "x")
    bodies = graph.nodes[0].graphs
    assert {name: ops(body) for name, body in bodies.items()} == {"then_branch": ["add"], "else_branch": ["mul"]}
    assert all(len(body.inputs) == 1 and len(body.initializers) == 1 for body in bodies.values())
    x = floats(2, 3)
    weight = next(iter(bodies["then_branch"].initializers.values()))
    assert (run(graph, {"c": np.array(True), "x": x})["y"] == x + weight).all()
    assert (run(graph, {"c": np.array(False), "x": x})["y"] == x * weight).all()


def test_a_condition_that_is_known_picks_its_branch(path):
    chosen = node("If", "c", "y", then_branch=_branch("a", "Add"), else_branch=_branch("b", "Mul"))
    constants = {"w": floats(3), "c": np.array(False)}
    graph = import_onnx(write(path, [chosen], [info("x", [2, 3])], [info("y", None)], constants))
    assert ops(graph) == ["mul"]


def test_a_carried_value_may_grow(path):
    """Its size is only known at run time, and so is the output's."""
    body = helper.make_graph(
        [node("Concat", "v x", "w", axis=0), node("Identity", "go", "on")],
        "body",
        [info("i", [], INT64), info("go", [], BOOL), info("v", None)],
        [info("on", [], BOOL), info("w", None)],
    )
    nodes = [node("Loop", "n  x", "y", body=body)]
    nodes[0].input[:] = ["n", "", "x"]
    graph = import_onnx(write(path, nodes, [info("x", [2, 3])], [info("y", None)], {"n": np.array(3)}))
    x = floats(2, 3)
    assert (run(graph, {"x": x})["y"] == np.concatenate([x] * 4)).all()


def _qdq_conv(path, weight_type, zero, scales):
    """A convolution with quantized weights and an int32 bias between QuantizeLinear and DequantizeLinear."""
    constants = {
        "sx": np.array(0.05, np.float32),
        "zx": np.array(120, np.uint8),
        "w": RNG.integers(1, 100, (4, 3, 3, 3)).astype(weight_type),
        "sw": scales,
        "zw": np.full(scales.shape, zero, weight_type),
        "b": RNG.integers(-500, 500, 4).astype(np.int32),
        "sb": np.float32(0.05) * scales,
        "sy": np.array(0.517, np.float32),
        "zy": np.array(128, np.uint8),
    }
    nodes = [
        node("QuantizeLinear", "x sx zx", "xq"),
        node("DequantizeLinear", "xq sx zx", "xd"),
        node("DequantizeLinear", "w sw zw", "wd", axis=0),
        node("DequantizeLinear", "b sb", "bd", axis=0),
        node("Conv", "xd wd bd", "c", "conv"),
        node("Relu", "c", "r"),
        node("QuantizeLinear", "r sy zy", "yq"),
        node("DequantizeLinear", "yq sy zy", "y"),
    ]
    return write(path, nodes, [info("x", ["n", 3, 8, 8])], [info("y", None)], constants), constants


@pytest.mark.parametrize(
    ("weight_type", "zero", "scales"),
    [
        (np.int8, 0, np.array([0.0101, 0.0203, 0.0307, 0.0409], np.float32)),
        (np.int8, 0, np.array(0.0203, np.float32)),
        (np.uint8, 128, np.array(0.0203, np.float32)),
    ],
)
def test_qdq_models_run_in_int8(path, weight_type, zero, scales):
    file, constants = _qdq_conv(path, weight_type, zero, scales)
    graph = lower_qdq(load_model(file))
    assert ops(graph) == ["quantize", "conv2d", "dequantize"]
    conv = graph.nodes[1]
    weight, out = graph.values[conv.inputs[1]], graph.values[conv.outputs[0]]
    assert weight.dtype.value == "int8"
    assert not weight.qparams.zero_point.any()
    assert out.qparams.scale == np.float32(0.517)
    x = floats(2, 3, 8, 8)
    y = run(graph, {"x": x})["y"]
    q = np.clip(np.rint(x / np.float32(0.05)) + 120, 0, 255) - 120
    column = np.broadcast_to(scales, 4).reshape(4, 1, 1, 1)
    real = (constants["w"].astype(np.float64) - zero) * column
    view = np.lib.stride_tricks.sliding_window_view(q * 0.05, (3, 3), (2, 3))
    bias = constants["b"] * 0.05 * np.broadcast_to(scales, 4)
    expected = np.maximum(np.einsum("nchwij,ocij->nohw", view, real) + bias.reshape(4, 1, 1), 0)
    expected = (np.clip(np.rint(expected / 0.517) + 128, 0, 255) - 128) * 0.517
    assert (np.abs(y - expected) > 0.25).mean() < 0.002


def test_weights_with_a_zero_point_are_floats(path):
    file, _ = _qdq_conv(path, np.uint8, 100, np.array(0.0203, np.float32))
    graph = lower_qdq(load_model(file))
    assert ops(graph) == ["quantize", "dequantize", "conv2d", "quantize", "dequantize"]


@pytest.mark.parametrize(("kind", "zero", "op"), [("int8", 0, True), ("uint8", 128, True), ("uint8", 100, False)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_dynamically_quantized_models_run_in_int8(path, kind, zero, op, per_channel):
    """As ONNX Runtime's quantize_dynamic writes a linear layer; the same numbers either way."""
    constants = {
        "w_quantized": RNG.integers(1, 100, (32, 6)).astype(kind),
        "ws": RNG.uniform(0.01, 0.02, 6 if per_channel else ()).astype(np.float32),
        "wz": np.array(zero, kind),
        "b": floats(6),
    }
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("Mul", "ws s", "scales"),
        node("MatMulInteger", "q w_quantized z wz", "m"),
        node("Cast", "m", "f", to=FLOAT),
        node("Mul", "f scales", "p", "fc"),
        node("Add", "p b", "y"),
    ]
    file = write(path, nodes, [info("x", ["n", 32])], [info("y", None)], constants)
    graph = load_model(file)
    assert (ops(graph) == ["linear_dynamic"]) is op
    assert graph.backend == ("fbgemm" if op else "")
    x = floats(5, 32)
    y = run(graph, {"x": x})["y"]
    np.testing.assert_allclose(y, run(import_onnx(file), {"x": x})["y"], rtol=1e-6, atol=1e-5)
    exact = x @ ((constants["w_quantized"].astype(np.float32) - zero) * constants["ws"]) + constants["b"]
    assert np.abs(y - exact).max() < 0.03 * np.abs(exact).max()


def test_external_data_are_mapped(path, tmp_path):
    weight = floats(64, 64)
    write(path, [node("MatMul", "x w", "y")], [info("x", ["n", 64])], [info("y", None)], {"w": weight})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = import_onnx(path)
    array = graph.initializers[graph.nodes[0].inputs[1]]
    assert (array == weight.T).all()
    while not isinstance(array, np.memmap):
        assert array.base is not None, "it was copied"
        array = array.base
    with open(tmp_path / "weights.bin", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ModelError, match=r"does not hold|valid"):
        import_onnx(path)


def test_external_data_stay_in_the_folder(path, tmp_path):
    (tmp_path / "inner").mkdir()
    inner = tmp_path / "inner" / "model.onnx"
    write(inner, [node("MatMul", "x w", "y")], [info("x", ["n", 8])], [info("y", None)], {"w": floats(8, 8)})
    model = onnx.load(inner)
    onnx.save(model, inner, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").write_bytes((tmp_path / "inner" / "weights.bin").read_bytes())
    model = onnx.load(inner, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    inner.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError):
        import_onnx(inner)


def test_without_onnx_the_extra_is_named(path, monkeypatch):
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"qtool\[onnx\]"):
        import_onnx(path)


def test_simplify_leaves_other_graphs_alone(path):
    graph = import_onnx(write(path, [node("Relu", "x", "y")], [info("x", [1, 2])], [info("y", None)]))
    assert simplify(graph).nodes == graph.nodes
