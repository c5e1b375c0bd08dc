"""The structure of exported ONNX models, and what happens where one cannot be written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import qtool
from qtool.cli import cli
from qtool.errors import MissingExtraError, ModelError, OutputError
from qtool.exporters import DEFAULT_OPSET, export_onnx
from qtool.exporters.onnx import model as model_module
from qtool.exporters.onnx.table import TABLE
from qtool.ir import DType, Graph, Node, QParams, Value
from qtool.ops import Builder, all_ops
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.schema import Backend, Mode

onnx = pytest.importorskip("onnx")
evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator

NET_OPS = ["conv2d", "batch_norm", "relu", "conv2d", "relu6", "add", "adaptive_avg_pool2d", "flatten", "linear"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def net() -> Graph:
    """A residual block with a batch norm, a relu6 and a linear layer."""
    b = Builder("net")
    x = b.input("x", ("N", 3, 8, 8))
    with b.scope("conv1"):
        y = b.node("conv2d", [x, b.param("weight", normal(4, 3, 3, 3))], padding=((1, 1), (1, 1)))
    with b.scope("bn1"):
        stats = [b.param("running_mean", normal(4)), b.param("running_var", np.abs(normal(4)) + 1)]
        y = shortcut = b.node("relu", [b.node("batch_norm", [y, *stats])])
    with b.scope("layer1"):
        with b.scope("0.conv"):
            inputs = [y, b.param("weight", normal(4, 4, 1, 1)), b.param("bias", normal(4))]
            y = b.node("relu6", [b.node("conv2d", inputs)])
        y = b.node("add", [y, shortcut])
    with b.scope("head"):
        y = b.node("flatten", [b.node("adaptive_avg_pool2d", [y], output_size=(1, 1))])
    with b.scope("fc"):
        y = b.node("linear", [y, b.param("weight", normal(5, 4)), b.param("bias", normal(5))])
    return replace(b.finish([y]), meta={"source": "a test", "epochs": [1, 2]})


def quantized(graph, backend="fbgemm", preset=None, **options):
    qconfig = {"": preset or qtool.get_default_qconfig(backend)}
    batches = [{"x": normal(8, 3, 8, 8, seed=n)} for n in range(2)]
    return qtool.quantize(graph, qconfig, batches, PrepareOptions(backend=Backend(backend), **options)).graph


def exported(graph, folder, **options):
    path = folder / "model.onnx"
    export_onnx(graph, path, **options)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def ops_of(model):
    return [node.op_type for node in model.graph.node]


def made_by(model, name):
    return next(node for node in model.graph.node if name in node.output)


def arrays_of(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


# ---- float ---------------------------------------------------------------------------------------------------------


def test_a_float_graph_is_written_node_by_node(net, tmp_path):
    assert [node.op for node in net.nodes] == NET_OPS
    model = exported(net, tmp_path)
    assert ops_of(model) == [
        *("Conv", "BatchNormalization", "Relu", "Conv", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm")
    ]
    assert [node.output[0] for node in model.graph.node] == [node.outputs[0] for node in net.nodes]
    assert arrays_of(model).keys() >= net.initializers.keys()
    for name, array in net.initializers.items():
        np.testing.assert_array_equal(arrays_of(model)[name], array)


def test_nodes_are_called_by_their_module_and_values_keep_names_and_shapes(net, tmp_path):
    model = exported(net, tmp_path)
    names = [node.name for node in model.graph.node]
    assert names[0] == "/conv1/Conv"
    assert names[3:6] == ["/layer1/0/conv/Conv", "/layer1/0/conv/Clip", "/layer1/Add"]
    assert len(set(names)) == len(names)
    described = {info.name: info for info in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    for name in net.inputs + tuple(out for node in net.nodes for out in node.outputs):
        dims = described[name].type.tensor_type.shape.dim
        assert tuple(d.dim_param or d.dim_value for d in dims) == net.values[name].shape
    assert described["x"].type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_model_says_where_it_comes_from(net, tmp_path):
    model = exported(net, tmp_path)
    assert model.producer_name == "qtool"
    assert model.opset_import[0].version == DEFAULT_OPSET
    assert {p.key: json.loads(p.value) for p in model.metadata_props} == {
        "qtool.source": "a test",
        "qtool.epochs": [1, 2],
    }
    recorded = {p.key: p.value for p in exported(quantized(net), tmp_path).metadata_props}
    assert recorded["qtool.backend"] == "fbgemm"
    assert json.loads(recorded["qtool.source"]) == "a test"


def test_paddings_that_onnx_convolutions_lack_are_nodes(tmp_path):
    b = Builder("pads")
    x = y = b.input("x", ("N", 2, 6, 6))
    for mode in ("reflect", "replicate", "circular"):
        attrs = {"padding": ((1, 2), (0, 1)), "padding_mode": mode}
        y = b.node("conv2d", [y, b.param(f"{mode}.weight", normal(2, 2, 4, 2))], **attrs)
    graph = b.finish([y])
    assert ops_of(exported(graph, tmp_path, opset=19)) == ["Pad", "Conv"] * 3
    old = exported(graph, tmp_path)
    assert "Slice" in ops_of(old)
    feeds = {"x": normal(2, 2, 6, 6)}
    (got,) = evaluator(old).run(None, feeds)
    np.testing.assert_allclose(got, qtool.Session(graph).run(feeds)[y], rtol=1e-4, atol=1e-4)
    assert x in old.graph.node[0].input


def test_fused_residuals_and_activations_are_nodes(tmp_path):
    b = Builder("fused")
    x = b.input("x", ("N", 2, 4, 4))
    inputs = [x, b.param("weight", normal(2, 2, 1, 1)), b.param("bias", normal(2)), x]
    y = b.node("conv2d", inputs, activation="clamp", clamp=(-1.0, 2.0))
    y = b.node("conv2d", [y, b.param("w2", normal(2, 2, 1, 1))], activation="hardswish")
    y = b.node("linear", [y, b.param("w3", normal(3, 4)), b.param("b3", normal(3))], activation="relu")
    model = exported(b.finish([y]), tmp_path)
    assert ops_of(model) == ["Conv", "Add", "Clip", "Conv", "HardSwish", "MatMul", "Add", "Relu"]
    assert "w3" not in arrays_of(model)  # MatMul has it transposed, and once is enough
    assert ops_of(exported(b.finish([y]), tmp_path, opset=13))[4:6] == ["HardSigmoid", "Mul"]


# ---- quantized -----------------------------------------------------------------------------------------------------


def test_a_quantized_graph_is_float_operators_between_quantize_and_dequantize(net, tmp_path):
    graph = quantized(net)
    model = exported(graph, tmp_path)
    assert set(ops_of(model)) == {
        *("QuantizeLinear", "DequantizeLinear", "Conv", "Relu", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm")
    }
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [made_by(model, name).op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    arrays = arrays_of(model)
    for name, value in graph.values.items():
        if value.qparams is None:
            continue
        stored = made_by(model, name).input[1:] if name not in graph.initializers else None
        if stored is None:
            stored = next(node for node in model.graph.node if name in node.input).input[1:]
        np.testing.assert_array_equal(arrays[stored[0]].reshape(-1), value.qparams.scale)
        np.testing.assert_array_equal(arrays[stored[1]].reshape(-1), value.qparams.zero_point)
        assert arrays[stored[1]].dtype == value.qparams.dtype.numpy


def test_weights_are_int8_with_a_scale_a_channel(net, tmp_path):
    graph = quantized(net)
    model = exported(graph, tmp_path)
    weight = made_by(model, "conv1.weight.dq")
    assert weight.input[0] == "conv1.weight.q"
    assert attributes(weight) == {"axis": 0}
    assert arrays_of(model)["conv1.weight.q"].dtype == np.int8
    assert arrays_of(model)[weight.input[1]].shape == (4,)
    assert "conv1.weight" not in arrays_of(model)
    per_tensor = exported(quantized(net, "qnnpack"), tmp_path)
    weight = made_by(per_tensor, "conv1.weight.dq")
    assert arrays_of(per_tensor)[weight.input[1]].shape == ()
    assert not weight.attribute


def test_biases_are_float_or_integers_as_the_backend_adds_them(net, tmp_path):
    model = exported(quantized(net), tmp_path)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    np.testing.assert_array_equal(arrays_of(model)[gemm.input[2]], net.initializers["fc.bias"])
    graph = quantized(net, "qnnpack")
    model = exported(graph, tmp_path)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    bias = made_by(model, gemm.input[2])
    x, weight = (made_by(model, name) for name in gemm.input[:2])
    arrays = arrays_of(model)
    assert arrays[bias.input[0]].dtype == np.int32
    np.testing.assert_array_equal(
        arrays[bias.input[1]].reshape(-1), arrays[x.input[1]] * arrays[weight.input[1]].reshape(-1)
    )


def test_a_bias_too_large_for_its_integers_stays_float(tmp_path):
    b = Builder("large")
    x = b.input("x", ("N", 2))
    q = QParams.per_tensor(1e-3, 0, DType.UINT8)
    xq = b.node("quantize", [x], qparams=q)
    w = b.param("w.q", np.ones((1, 2), np.int8), QParams.per_tensor(1e-3, 0, DType.INT8))
    y = b.node("linear", [xq, w, b.param("bias", np.array([1e3], np.float32))], qparams=q)
    model = exported(b.finish([b.node("dequantize", [y])], "qnnpack"), tmp_path)
    assert made_by(model, "linear").op_type == "QuantizeLinear"
    assert "bias" in next(node for node in model.graph.node if node.op_type == "Gemm").input


def one_conv(out: QParams, **attrs) -> Graph:
    b = Builder("one")
    x = b.node("quantize", [b.input("x", ("N", 2, 4, 4))], qparams=QParams.per_tensor(0.05, 100, DType.UINT8))
    w = b.param("w.q", np.ones((2, 2, 1, 1), np.int8), QParams.per_tensor(0.1, 0, DType.INT8))
    y = b.node("conv2d", [x, w], "y", out, **attrs)
    return b.finish([b.node("dequantize", [y])], "fbgemm")


def test_activations_that_the_range_makes_redundant_stand_right_before_quantize(tmp_path):
    """Runtimes fold them away then, and run the layer in int8."""
    relu = exported(one_conv(QParams.per_tensor(0.1, 0, DType.UINT8), activation="relu"), tmp_path)
    assert ops_of(relu)[-4:] == ["Conv", "Relu", "QuantizeLinear", "DequantizeLinear"]
    scale = np.float32(6) / np.float32(255)
    for step in range(-2, 3):  # the largest real is a rounding error below 6, or above
        near = np.float32(scale * (1 + step * 2.0**-23))
        graph = one_conv(QParams.per_tensor(float(near), 0, DType.UINT8), activation="clamp", clamp=(0.0, 6.0))
        model = exported(graph, tmp_path)
        assert ops_of(model)[-4:] == ["Conv", "Clip", "QuantizeLinear", "DequantizeLinear"]
        high = arrays_of(model)[next(node for node in model.graph.node if node.op_type == "Clip").input[2]]
        assert high >= near * np.float32(255)


@pytest.mark.parametrize("attrs", [{"activation": "relu"}, {"activation": "clamp", "clamp": (-0.5, 1.0)}])
def test_other_activations_work_on_rounded_values(attrs, tmp_path):
    graph = one_conv(QParams.per_tensor(0.03, 77, DType.UINT8), **attrs)
    model = exported(graph, tmp_path, opset=19)  # the first that the package's own evaluator runs
    middle = ["Conv", "QuantizeLinear", "DequantizeLinear"]
    assert ops_of(model)[-6:-3] == middle
    assert ops_of(model)[-3] in ("Relu", "Clip")
    feeds = {"x": normal(3, 2, 4, 4)}
    (got,) = evaluator(model).run(None, feeds)
    expected = qtool.Session(graph).run(feeds)[graph.outputs[0]]
    assert np.abs(got - expected).max() <= 0.03 * 1.01
    assert (got == expected).mean() > 0.9


def test_layers_quantized_at_run_time_are_integer_products(net, tmp_path):
    for backend, last in (("qnnpack", "DynamicQuantizeLinear"), ("fbgemm", "QuantizeLinear")):
        graph = quantized(net, backend, qtool.get_default_dynamic_qconfig(), mode=Mode.DYNAMIC)
        model = exported(graph, tmp_path)
        assert ops_of(model)[-4:] == ["Cast", "Mul", "Mul", "Add"] or ops_of(model)[-4:] == [
            "Mul",
            "Cast",
            "Mul",
            "Add",
        ]
        product = next(node for node in model.graph.node if node.op_type == "MatMulInteger")
        assert made_by(model, product.input[0]).op_type == last
        assert arrays_of(model)[product.input[1]].dtype == np.int8
        feeds = {"x": normal(4, 3, 8, 8)}
        (got,) = evaluator(model).run(None, feeds)
        np.testing.assert_allclose(got, qtool.Session(graph).run(feeds)[graph.outputs[0]], rtol=1e-2, atol=1e-2)


def test_debug_graphs_are_written_as_the_int8_graphs_they_stand_for(net, tmp_path):
    batches = [{"x": normal(8, 3, 8, 8)}]
    qconfig = {"": qtool.get_default_qconfig("fbgemm")}
    models = [
        exported(qtool.quantize(net, qconfig, batches, debug=debug).graph, tmp_path).graph for debug in (True, False)
    ]
    assert models[0] == models[1]


# ---- operator sets and errors --------------------------------------------------------------------------------------


def test_every_operator_has_a_row():
    assert set(all_ops()) <= set(TABLE)
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    for spec in all_ops().values():
        assert known.issuperset(spec.onnx), spec.name


def test_an_operator_that_needs_a_newer_opset_gets_it(tmp_path):
    b = Builder("gelu")
    y = b.node("mish", [b.node("gelu", [b.input("x", ("N", 4))])])
    assert exported(b.finish([y]), tmp_path).opset_import[0].version == 18
    assert "Gelu" in ops_of(exported(b.finish([y]), tmp_path, opset=20))
    with pytest.raises(ModelError, match=r"'gelu' needs opset 18, got 17:\n  mish 'mish': needs opset 18"):
        export_onnx(b.finish([y]), tmp_path / "old.onnx", 17)
    assert not (tmp_path / "old.onnx").exists()


def test_element_types_that_came_later_choose_the_opset_too(tmp_path):
    b = Builder("shift")
    x = b.input("x", ("N",), DType.UINT8)
    made = b.finish([b.node("bit_shift", [x, x], direction="LEFT")])
    assert exported(made, tmp_path).opset_import[0].version == DEFAULT_OPSET
    signed = replace(made, values={name: replace(v, dtype=DType.INT16) for name, v in made.values.items()})
    assert exported(signed, tmp_path).opset_import[0].version > DEFAULT_OPSET


@pytest.mark.parametrize("opset", [12, 10_000])
def test_opsets_out_of_range(net, opset, tmp_path):
    with pytest.raises(ModelError, match=f"got opset {opset}, expected 13 to {onnx.defs.onnx_opset_version()}"):
        export_onnx(net, tmp_path / "m.onnx", opset)


def test_all_that_onnx_has_not_is_told_at_once(net, tmp_path):
    nodes = [replace(node, op=f"my_{node.op}") if node.op in ("relu", "add") else node for node in net.nodes]
    with pytest.raises(ModelError) as error:
        export_onnx(replace(net, nodes=tuple(nodes)), tmp_path / "m.onnx")
    assert str(error.value).count("ONNX has no such operator") == 2
    assert "my_relu 'bn1_1'" in str(error.value)
    assert "my_add 'layer1'" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_valid_is_not_written(tmp_path):
    node = Node("relu", "r", ("x",), ("y",))
    values = {"x": Value("x", DType.FLOAT32, ("N", 2)), "y": Value("y", DType.FLOAT32, ("N", 3))}
    with pytest.raises(ModelError, match="does not make a valid ONNX model"):
        export_onnx(Graph("bad", ("x",), ("y",), (node,), values, {}), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(net, tmp_path):
    with pytest.raises(OutputError, match="no folder"):
        export_onnx(net, tmp_path / "missing" / "m.onnx")


def test_without_the_package_onnx(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"qtool\[onnx\]"):
        export_onnx(net, tmp_path / "m.onnx")


# ---- large models --------------------------------------------------------------------------------------------------


def test_large_weights_go_to_a_file_of_their_own(tmp_path):
    b = Builder("large")
    y = b.node("linear", [b.input("x", ("N", 40)), b.param("w", normal(50, 40)), b.param("b", normal(50))])
    graph = b.finish([y])
    done = export_onnx(graph, tmp_path / "m.onnx", external_bytes=1000)
    assert done.data == tmp_path / "m.onnx.data"
    assert done.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    onnx.checker.check_model(str(done.path), full_check=True)
    small = onnx.load(done.path, load_external_data=False)
    assert small.ByteSize() < 1000
    assert [t.name for t in small.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL] == ["w"]
    for name, array in arrays_of(onnx.load(done.path)).items():
        np.testing.assert_array_equal(array, graph.initializers[name])
    assert export_onnx(graph, tmp_path / "n.onnx").data is None


def test_external_arrays_begin_on_pages():
    arrays = {"a": np.zeros(5000, np.int8), "small": np.zeros(3, np.int8), "b": np.zeros(2000, np.float32)}
    places = model_module._place(arrays)
    assert places == {"a": (0, 5000), "b": (8192, 8000)}


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_a_model(net, tmp_path):
    qtool.save(quantized(net), tmp_path / "quant.npz")
    out = tmp_path / "quant.onnx"
    done = CliRunner().invoke(cli, ["export", str(tmp_path / "quant.npz"), str(out), "--opset", "18", "--json"])
    assert done.exit_code == 0, done.output
    plain = json.loads(done.stdout)
    assert plain["schema"] == "qtool.export/1"
    assert plain["kind"] == "int8, backend fbgemm"
    assert plain["opset"] == onnx.load(out).opset_import[0].version == 18
    assert plain["bytes"] == out.stat().st_size
    assert plain["external_data"] is None
    text = CliRunner().invoke(cli, ["export", str(tmp_path / "quant.npz"), str(out)])
    assert text.exit_code == 0
    assert f"opset {DEFAULT_OPSET}, {plain['nodes']} nodes" in " ".join(text.stdout.split())


def test_the_command_does_not_begin_where_it_cannot_end(net, tmp_path):
    qtool.save(net, tmp_path / "m.npz")
    done = CliRunner().invoke(cli, ["export", str(tmp_path / "m.npz"), str(tmp_path / "no" / "m.onnx")])
    assert isinstance(done.exception, OutputError)
    assert not Path(tmp_path / "no").exists()
