"""Is the tree alive? Everything from graph to int8 result on a tiny network, in a few seconds."""

from __future__ import annotations

import numpy as np
import pytest

import qtool
from qtool import native
from qtool.engine import reference
from qtool.ops import Builder
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.schema import Backend, Mode

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def tiny():
    """conv + batch norm + relu, a residual add, a pool and a classifier."""
    b = Builder("tiny")
    x = b.input("x", ("N", 4, 8, 8))
    with b.scope("conv"):
        y = b.node("conv2d", [x, b.param("weight", floats(4, 4, 3, 3))], padding=((1, 1), (1, 1)))
    with b.scope("bn"):
        params = [b.param(n, np.abs(floats(4)) + 0.5) for n in ("running_mean", "running_var", "weight", "bias")]
        y = b.node("batch_norm", [y, *params])
    with b.scope("relu"):
        y = b.node("relu", [y])
    y = b.node("add", [y, x], name="sum")
    y = b.node("flatten", [b.node("adaptive_avg_pool2d", [y], name="pool", output_size=(1, 1))], name="flatten")
    with b.scope("fc"):
        y = b.node("linear", [y, b.param("weight", floats(3, 4)), b.param("bias", floats(3))])
    return b.finish([y])


@pytest.fixture(scope="module")
def graph():
    return tiny()


@pytest.fixture(scope="module")
def batches():
    return [{"x": floats(8, 4, 8, 8)} for _ in range(2)]


def test_float_session_is_the_reference(graph, batches):
    got, expected = qtool.Session(graph).run(batches[0]), reference.run(graph, batches[0])
    np.testing.assert_allclose(got["fc"], expected["fc"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", list(Backend), ids=lambda backend: backend.value)
def test_int8_is_close_to_float_and_the_same_bits_everywhere(graph, batches, backend):
    options = PrepareOptions(backend=backend)
    result = qtool.quantize(graph, {"": qtool.get_default_qconfig(backend)}, batches, options).graph
    assert all(result.values[node.outputs[0]].qparams for node in result.nodes if node.op == "conv2d")
    expected = reference.run(result, batches[0])["fc"]
    for isa in native.supported_isas():
        np.testing.assert_array_equal(qtool.Session(result, isa=isa).run(batches[0])["fc"], expected)
    real = reference.run(graph, batches[0])["fc"]
    assert np.abs(expected - real).max() < 0.1 * np.abs(real).max()


def test_debug_gives_the_bits_of_int8(graph, batches):
    qconfig = {"": qtool.get_default_qconfig("fbgemm")}
    debug = qtool.quantize(graph, qconfig, batches, debug=True).graph
    int8 = qtool.quantize(graph, qconfig, batches).graph
    assert any(node.op == "dequantize" and "weight" in node.name for node in debug.nodes)
    expected = qtool.Session(int8).run(batches[0])["fc"]
    np.testing.assert_array_equal(qtool.Session(debug).run(batches[0])["fc"], expected)


def test_dynamic_needs_no_data(graph, batches):
    options = PrepareOptions(mode=Mode.DYNAMIC)
    result = qtool.quantize(graph, {"": qtool.get_default_dynamic_qconfig()}, (), options).graph
    assert [node.op for node in result.nodes if "fc" in node.name] == ["linear_dynamic"]
    real = reference.run(graph, batches[0])["fc"]
    np.testing.assert_allclose(qtool.Session(result).run(batches[0])["fc"], real, atol=0.1 * np.abs(real).max())


def test_the_file_gives_the_model_back(graph, batches, tmp_path):
    result = qtool.quantize(graph, {"": qtool.get_default_qconfig("fbgemm")}, batches).graph
    qtool.save(result, tmp_path / "tiny.npz")
    loaded = qtool.load(tmp_path / "tiny.npz")
    assert loaded.backend == "fbgemm"
    np.testing.assert_array_equal(
        qtool.Session(loaded).run(batches[0])["fc"], qtool.Session(result).run(batches[0])["fc"]
    )
