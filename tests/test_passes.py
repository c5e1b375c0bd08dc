"""Fusions keep what a graph computes, and refuse what they cannot keep."""

from __future__ import annotations

import numpy as np
import pytest

from qtool.engine import reference
from qtool.errors import ModelError, RecipeError
from qtool.ir import DType, Graph, QParams
from qtool.ops import Builder, attrs_of
from qtool.passes import Fusion, clean, fuse, lower_qdq

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def conv(b, x, scope, channels, out, *, bias=True):
    with b.scope(scope):
        inputs = [x, b.param("weight", floats(out, channels, 3, 3))]
        if bias:
            inputs.append(b.param("bias", floats(out)))
        return b.node("conv2d", inputs, padding=((1, 1), (1, 1)))


def batch_norm(b, x, scope, channels, *, affine=True, eps=1e-5):
    with b.scope(scope):
        inputs = [x, b.param("running_mean", floats(channels)), b.param("running_var", np.abs(floats(channels)) + 0.1)]
        if affine:
            inputs += [b.param("weight", floats(channels)), b.param("bias", floats(channels))]
        return b.node("batch_norm", inputs, eps=eps)


def relu(b, x, scope):
    with b.scope(scope):
        return b.node("relu", [x])


def block(*, activation="relu"):
    """conv1 - bn1 - act - conv2 - bn2 - add(x0) - relu: a residual block with the module names of torchvision."""
    b = Builder("block")
    x = b.input("x", ("N", 4, 6, 6))
    first = batch_norm(b, conv(b, x, "conv1", 4, 4, bias=False), "bn1", 4)
    with b.scope("act"):
        first = b.node(activation, [first])
    second = batch_norm(b, conv(b, first, "conv2", 4, 4), "bn2", 4)
    with b.scope("add"):
        total = b.node("add", [second, x])
    return b.finish([relu(b, total, "relu")])


def same_result(before: Graph, after: Graph, tolerance=1e-5):
    feeds = {"x": floats(2, *before.values["x"].shape[1:])}
    expected, got = reference.run(before, feeds), reference.run(after, feeds)
    assert expected.keys() == got.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=tolerance, atol=tolerance * 10)


def ops(graph):
    return [node.op for node in graph.nodes]


def test_auto_fuses_a_residual_block():
    graph = block()
    fused = fuse(graph)
    assert ops(fused) == ["conv2d", "conv2d", "add"]
    assert [attrs_of(node).activation for node in fused.nodes] == ["relu", "none", "relu"]
    assert [node.scope for node in fused.nodes] == ["conv1", "conv2", "add"]
    assert fused.outputs == graph.outputs
    same_result(graph, fused)


def test_none_fuses_nothing():
    graph = block()
    assert ops(fuse(graph, Fusion("none"))) == ops(graph)


def test_clamp_needs_permission():
    graph = block(activation="relu6")
    assert "relu6" in ops(fuse(graph))
    fused = fuse(graph, Fusion(clamp=("conv1",)))
    assert "relu6" not in ops(fused)
    assert attrs_of(fused.nodes[0]).clamp == (0.0, 6.0)
    same_result(graph, fused)


def test_residual_needs_permission_and_keeps_the_relu():
    graph = block()
    fused = fuse(graph, Fusion(residual=("conv2",)))
    assert ops(fused) == ["conv2d", "conv2d"]
    assert fused.nodes[1].inputs[3] == "x"
    assert attrs_of(fused.nodes[1]).activation == "relu"
    same_result(graph, fused)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1e-12])
def test_batch_norm_folds_with_any_eps_and_affine(affine, bias, eps):
    b = Builder("bn")
    x = b.input("x", ("N", 3, 5, 5))
    graph = b.finish([batch_norm(b, conv(b, x, "conv", 3, 4, bias=bias), "bn", 4, affine=affine, eps=eps)])
    fused = fuse(graph)
    assert ops(fused) == ["conv2d"]
    same_result(graph, fused)


def test_batch_norm_after_linear_folds():
    b = Builder("mlp")
    x = b.input("x", ("N", 5))
    with b.scope("fc"):
        y = b.node("linear", [x, b.param("weight", floats(4, 5))])
    graph = b.finish([batch_norm(b, y, "bn", 4)])
    assert ops(fuse(graph)) == ["linear"]
    same_result(graph, fuse(graph))


def test_a_convolution_read_twice_keeps_its_batch_norm():
    b = Builder("shared")
    x = b.input("x", ("N", 3, 5, 5))
    y = conv(b, x, "conv", 3, 3)
    graph = b.finish([y, batch_norm(b, y, "bn", 3)])
    assert ops(fuse(graph)) == ["conv2d", "batch_norm"]


def test_a_shared_weight_is_not_changed_for_its_other_reader():
    b = Builder("tied")
    x = b.input("x", ("N", 3, 5, 5))
    w = b.param("shared", floats(3, 3, 3, 3))
    first = b.node("conv2d", [x, w], padding=((1, 1), (1, 1)), name="a")
    normed = batch_norm(b, first, "bn", 3)
    graph = b.finish([b.node("conv2d", [normed, w], padding=((1, 1), (1, 1)), name="b")])
    fused = fuse(graph)
    assert ops(fused) == ["conv2d", "conv2d"]
    same_result(graph, fused, 1e-4)


def test_clean_drops_identities_dead_nodes_and_constants():
    b = Builder("clutter")
    x = b.input("x", ("N", 3))
    dropped = b.node("dropout", [x])
    b.node("relu", [dropped], name="dead")
    scale = b.node("mul", [b.param("a", floats(3)), b.param("b", floats(3))], name="scale")
    graph = b.finish([b.node("mul", [b.node("identity", [dropped]), scale], name="y")])
    cleaned = clean(graph)
    assert ops(cleaned) == ["mul"]
    assert cleaned.nodes[0].inputs == ("x", "scale")
    same_result(graph, cleaned)


def test_an_identity_between_input_and_output_stays():
    b = Builder("through")
    graph = b.finish([b.node("identity", [b.input("x", ("N", 3))])])
    assert ops(clean(graph)) == ["identity"]


def test_lists_fuse_exactly_what_they_name():
    graph = block()
    fused = fuse(graph, Fusion((("conv1", "bn1", "act"),)))
    assert ops(fused) == ["conv2d", "conv2d", "batch_norm", "add", "relu"]
    same_result(graph, fused)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("conv1", "bnl"), "no module is called 'bnl'.*did you mean 'bn[12]'"),
        (("conv1", "bn2"), "'bn2' does not read 'conv1'"),
        (("conv1",), "at least two"),
        (("bn1", "act"), "batch_norm \\+ relu, which cannot be fused"),
    ],
)
def test_a_list_that_cannot_be_fused_says_why(names, message):
    with pytest.raises(RecipeError, match=message):
        fuse(block(), Fusion((names,)))


def test_a_module_in_two_lists_is_refused():
    with pytest.raises(RecipeError, match="in two lists"):
        fuse(block(), Fusion((("conv1", "bn1"), ("conv1", "bn1", "act"))))


def test_fusion_survives_the_file():
    for fusion in (Fusion(), Fusion((("a", "b"), ("c", "d"))), Fusion("auto", ("x",), ("y",))):
        assert Fusion.from_json(fusion.to_json()) == fusion
    with pytest.raises(ModelError, match="does not record"):
        Fusion.from_json(None)


def qdq_linear():
    b = Builder("qdq")
    x = b.input("x", ("N", 4))
    activation = QParams.per_tensor(0.05, 128, DType.UINT8)
    weight = QParams.per_tensor(0.02, 0, DType.INT8)
    xq = b.node("quantize", [x], name="x.q", qparams=activation)
    w = b.param("w", floats(3, 4))
    wq = b.node("quantize", [w], name="w.q", qparams=weight)
    y = b.node("linear", [b.node("dequantize", [xq], name="x.dq"), b.node("dequantize", [wq], name="w.dq")], name="y")
    yq = b.node("quantize", [y], name="y.q", qparams=QParams.per_tensor(0.1, 100, DType.UINT8))
    return b.finish([b.node("dequantize", [yq], name="out")], backend="fbgemm")


def test_qdq_around_a_layer_becomes_int8():
    lowered = lower_qdq(qdq_linear())
    assert ops(lowered) == ["quantize", "linear", "dequantize"]
    assert lowered.nodes[1].inputs == ("x.q", "w.q")
    assert lowered.initializers["w.q"].dtype == np.int8
    assert lowered.values["y.q"].qparams is not None
    assert "w" not in lowered.initializers


def test_a_layer_whose_float_output_is_read_stays_float():
    graph = qdq_linear()
    lowered = lower_qdq(graph.with_outputs(("out", "y")))
    assert ops(lowered).count("linear") == 1
    assert lowered.values["y"].qparams is None
