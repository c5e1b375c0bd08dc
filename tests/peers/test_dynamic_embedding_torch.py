"""Tables of embeddings against PyTorch's quantized Embedding in 8 and 4 bits."""

from __future__ import annotations

import numpy as np
import pytest

import qtool
from qtool.ir import DType
from qtool.ops.builder import Builder
from qtool.recipe.presets import get_preset

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("bits", [4, 8])
def test_embedding(bits):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    names = {4: "float_qparams_weight_only_qconfig_4bit", 8: "float_qparams_weight_only_qconfig"}
    for scale in (0.01, 1.0, 30.0):
        module = torch.nn.Sequential(torch.nn.Embedding(60, 24))
        module[0].weight.data *= scale
        module.qconfig = getattr(torch.ao.quantization, names[bits])
        prepared = torch.ao.quantization.prepare(module)
        theirs = torch.ao.quantization.convert(prepared)
        ids = np.arange(60).reshape(6, 10)
        packed = theirs[0]._packed_params._packed_weight  # the module itself takes 4 bits for 8 in PyTorch 2.13
        look_up = torch.ops.quantized.embedding_4bit if bits == 4 else torch.ops.quantized.embedding_byte
        expected = look_up(packed, torch.from_numpy(ids)).numpy()
        b = Builder("words")
        weight = b.param("w", module[0].weight.detach().numpy())
        graph = b.finish([b.node("embedding", [b.input("ids", ("N", 10), DType.INT64), weight], "emb")])
        preset = get_preset({4: "float_qparams_4bit", 8: "float_qparams"}[bits])
        got = qtool.Session(qtool.quantize(graph, {"": preset}).graph).run({"ids": ids})["emb"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * scale)
