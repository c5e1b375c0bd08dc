"""Embeddings in 8 and 4 bits with a float scale and offset a row; tests/peers has PyTorch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import qtool
from qtool.errors import QuantizationError, RecipeError
from qtool.ir import DType, Graph
from qtool.ir.npz import load, save
from qtool.ops.builder import Builder
from qtool.ops.check import check_types
from qtool.quantize.tables import quantize_table
from qtool.recipe.load import load_recipe
from qtool.recipe.presets import get_preset

PRESETS = {8: "float_qparams", 4: "float_qparams_4bit"}


def model(columns: int = 7, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    b = Builder("words")
    ids = b.input("ids", ("N", 5), DType.INT64)
    x = b.node("embedding", [ids, b.param("emb.weight", rng.normal(size=(20, columns)).astype(np.float32))], "emb")
    return b.finish([b.node("linear", [x, b.param("fc.w", rng.normal(size=(3, columns)).astype(np.float32))], "fc")])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [1, 6, 7])
def test_rows_come_back_within_half_a_step(bits, columns, tmp_path):
    graph = model(columns)
    quant = qtool.quantize(graph, {"": get_preset(PRESETS[bits])}).graph
    check_types(quant)
    save(quant, tmp_path / "q.npz")
    quant = load(tmp_path / "q.npz")
    assert [node.op for node in quant.nodes] == ["embedding_rows", "linear_dynamic"]
    assert "emb.weight" not in quant.initializers
    assert quant.initializers[f"emb.weight.rows{bits}"].shape == (20, -(-columns * bits // 8))
    ids = np.arange(20).reshape(4, 5)
    got = qtool.Session(quant.with_outputs(["emb"])).run({"ids": ids})["emb"].reshape(20, columns)
    weight = graph.initializers["emb.weight"]
    step = (weight.max(1) - weight.min(1)) / (2**bits - 1)
    halves = np.abs(weight).max(1) * 2.0**-9 if bits == 4 else 0  # PyTorch has the scales of 4-bit rows in float16
    assert (np.abs(got - weight).max(1) <= step * 0.5001 + 1e-6 + halves).all()


def test_flat_rows_are_kept():
    weight = np.array([[2.5, 2.5, 2.5], [0, 0, 0], [-3, -3, -3]], np.float32)
    stored, scale, offset = quantize_table(weight, 8)
    np.testing.assert_allclose(stored * scale[:, None] + offset[:, None], weight, atol=0.5)
    assert (scale == 1).all()


def test_without_bits_the_table_stays_in_float():
    result = qtool.quantize(model(), {"": get_preset("dynamic")})
    (fallback,) = result.calibrated.prepared.fallbacks
    assert fallback.node == "emb"
    assert "embedding_bits" in fallback.reason
    assert result.graph.nodes[0].op == "embedding"


def test_inside_a_static_model():
    rules = {"": get_preset("fbgemm"), "type:embedding": get_preset("float_qparams")}
    feeds = {"ids": np.arange(20).reshape(4, 5)}
    results = [qtool.quantize(model(), rules, [feeds], debug=debug).graph for debug in (False, True)]
    assert [node.op for node in results[0].nodes][:3] == ["embedding_rows", "quantize", "linear"]
    outputs = [qtool.Session(graph).run(feeds)["fc"] for graph in results]
    np.testing.assert_array_equal(*outputs)


def test_infinite_tables_are_named():
    graph = model()
    graph.initializers["emb.weight"][3, 2] = np.inf
    with pytest.raises(QuantizationError, match=r"'emb\.weight' of embedding 'emb'"):
        qtool.quantize(graph, {"": get_preset("float_qparams")})


def test_in_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = "model: a.npz\noutput: b.npz\nmode: {}\nqconfig_dict: {{x: {{embedding_bits: {}}}}}\n"
    path.write_text(text.format("dynamic", 4))
    assert load_recipe(path).rules[0].qconfig == replace(get_preset("dynamic"), embedding_bits=4)
    path.write_text(text.format("dynamic", 5))
    with pytest.raises(RecipeError, match="embedding_bits: got 5, expected 8 or 4"):
        load_recipe(path)
    path.write_text(text.format("static", 8))
    with pytest.raises(RecipeError, match="is for mode: dynamic"):
        load_recipe(path)
