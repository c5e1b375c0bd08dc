"""A real character LSTM, quantized at run time by one recipe; QTOOL_TEST_DATA says where its files are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qtool.ir import DType, Graph
from qtool.ir.npz import save
from qtool.ops.builder import Builder

DATA = Path(os.environ.get("QTOOL_TEST_DATA", "/nonexistent")) / "lstm_char"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="QTOOL_TEST_DATA holds no lstm_char")
SEQUENCES, STEPS, UNSCORED_STEPS = 40, 1500, 50
FLOAT_BITS = 1.9525

RECIPE = """\
model: char.npz
output: char.int8.npz
mode: dynamic
qconfig_dict: {"": per_channel_dynamic}
evaluation: {data: text.npz, metric: bits_per_character, batch_size: 40}
gates: {max_accuracy_drop: 0.01, min_size_ratio: 3.0}
"""


def char_lstm() -> Graph:
    """TensorFlow's two BasicLSTM cells: gates i, j, f, o, a forget bias of 1, one kernel for x and h."""
    arrays = np.load(DATA / "weights.npz")
    b = Builder("char_lstm")
    ids = b.input("x", ("N", STEPS), DType.INT64)
    x = b.node("embedding", [ids, b.param("embedding.weight", arrays["embedding"])], "embedding")
    for number in range(2):
        prefix = f"rnnlm.multi_rnn_cell.cell_{number}.basic_lstm_cell"
        kernel, bias = (np.split(arrays[f"{prefix}.{name}"], 4, axis=-1) for name in ("kernel", "bias"))
        bias[2] = bias[2] + np.float32(1)
        weight = np.concatenate([kernel[gate] for gate in (0, 3, 2, 1)], axis=1).T  # ONNX has i, o, f, c
        size = weight.shape[1] - 128
        biases = np.concatenate([*(bias[gate] for gate in (0, 3, 2, 1)), np.zeros(512, np.float32)])
        with b.scope(f"lstm{number}"):
            parts = (weight[:, :size], weight[:, size:], biases)
            params = [b.param(name, np.ascontiguousarray(part[None])) for name, part in zip("wrb", parts, strict=True)]
            y = b.nodes("lstm", [x, *params], 3, hidden_size=128, layout=1)[0]
        x = b.node("squeeze", [y], f"last{number}", dim=(2,))
    weight = np.ascontiguousarray(arrays["rnnlm.softmax_w"].T)
    with b.scope("out"):
        x = b.node("linear", [x, b.param("weight", weight), b.param("bias", arrays["rnnlm.softmax_b"])])
    return b.finish([x])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model, and the end of the text: characters, and those that follow them."""
    folder = tmp_path_factory.mktemp("char_lstm")
    save(char_lstm(), folder / "char.npz")
    vocabulary = json.loads((DATA / "vocab.json").read_text())
    text = (DATA / "text_tail_300k.txt").read_bytes().decode()
    ids = np.array([vocabulary[c] for c in text[-SEQUENCES * STEPS - 1 :]], np.int64)
    following = ids[1:].reshape(SEQUENCES, STEPS).copy()
    following[:, :UNSCORED_STEPS] = -100
    np.savez(folder / "text.npz", x=ids[:-1].reshape(SEQUENCES, STEPS), y=following)
    return folder


def test_bits_per_character(folder):
    (folder / "recipe.yaml").write_text(RECIPE)
    call = [sys.executable, "-m", "qtool", "quantize", "--recipe", "recipe.yaml", "--json"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["accuracy"]["float"] == pytest.approx(FLOAT_BITS, abs=2e-3)
    assert report["accuracy"]["quant"] - report["accuracy"]["float"] <= 0.01
    precision = {layer["name"]: layer["precision"] for layer in report["layers"]}
    assert [precision[name] for name in ("lstm0", "lstm1", "out")] == ["int8 dynamic"] * 3
