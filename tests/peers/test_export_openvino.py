"""Exported QDQ models in OpenVINO against qtool's own engine, on all test digits.

OpenVINO fuses a layer with what stands behind it and rounds once, where PyTorch's arithmetic (fbgemm, qnnpack) rounds
the convolution and then the residual sum; and it rounds biases and clamps by ways of its own. Measured with 2026.4 on
AVX512-VNNI, in steps of the output's scale: where qtool rounds once too (``accurate``) no output is off by more than
one step, the others by up to two (ResNet) or four (MobileNetV2, 8 % by more than one). The class is the same.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cpu import needs_vnni

pytest.importorskip("onnx")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.peers

import qtool  # noqa: E402
from qtool.exporters import export_onnx  # noqa: E402
from qtool.ir import npz  # noqa: E402
from qtool.quantize.prepare import PrepareOptions  # noqa: E402
from qtool.recipe.presets import get_preset  # noqa: E402
from qtool.recipe.schema import Backend  # noqa: E402

FOLDER = Path(__file__).resolve().parents[2] / "sample_models"
ONE_STEP = 0.999
"""The share of outputs that is off by one step at most."""
EXPECTED = {
    ("digits_resnet", "accurate", "fbgemm"): ONE_STEP,
    ("digits_resnet", "accurate", "onednn"): ONE_STEP,
    ("digits_resnet", "fbgemm", "fbgemm"): ONE_STEP,
    ("digits_resnet", "onednn", "onednn"): ONE_STEP,
    ("digits_resnet", "qnnpack", "qnnpack"): ONE_STEP,
    ("digits_mobilenet", "accurate", "fbgemm"): ONE_STEP,
    ("digits_mobilenet", "accurate", "onednn"): ONE_STEP,
    ("digits_mobilenet", "onednn", "onednn"): 0.98,
    ("digits_mobilenet", "fbgemm", "fbgemm"): 0.85,
    ("digits_mobilenet", "qnnpack", "qnnpack"): 0.85,
}


@cache
def digits(split):
    with np.load(FOLDER / "digits.npz") as data:
        return data[f"{split}_x"].astype(np.float32)


def compiled(graph, folder):
    """The exported model as OpenVINO compiles it, its batch left open."""
    export_onnx(graph, folder / "model.onnx")
    return openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def quantized(name, preset, backend):
    graph = npz.load(FOLDER / f"{name}.npz")
    options = PrepareOptions(backend=Backend(backend))
    return qtool.quantize(graph, {"": get_preset(preset)}, [{graph.inputs[0]: digits("calib")[:128]}], options).graph


def run(graph, x):
    (found,) = qtool.Session(graph).run({graph.inputs[0]: x}).values()
    return found


def needed(case):
    """A case with what its activations need: 7 bits, as fbgemm has them, do not saturate."""
    return pytest.param(case, id="-".join(case), marks=() if case[1] == "fbgemm" else needs_vnni)


@pytest.mark.parametrize("case", [needed(case) for case in EXPECTED])
def test_quantized_models_agree(case, tmp_path):
    graph, x = quantized(*case), digits("test")
    ours, theirs = run(graph, x), compiled(graph, tmp_path)([x])[0]
    step = graph.values[graph.producers[graph.outputs[0]].inputs[0]].qparams.scale[0]
    off = np.rint(np.abs(theirs - ours) / step)
    np.testing.assert_array_equal(theirs.argmax(axis=1), ours.argmax(axis=1))
    assert np.mean(off <= 1) >= EXPECTED[case]
    assert off.max() <= (2 if EXPECTED[case] == ONE_STEP else 8)


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet", "digits_mlp"])
def test_float_models_agree(name, tmp_path):
    graph, x = npz.load(FOLDER / f"{name}.npz"), digits("test")
    ours, theirs = run(graph, x), compiled(graph, tmp_path)([x])[0]
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet"])
def test_the_batch_stays_open(name, tmp_path):
    """One compiled model takes any number of samples, and gives each the same whatever stands beside it."""
    model, x = compiled(quantized(name, "accurate", "fbgemm"), tmp_path), digits("test")[:33]
    whole = model([x])[0].copy()
    for batch in (1, 2, 7):
        found = np.concatenate([model([x[start : start + batch]])[0].copy() for start in range(0, len(x), batch)])
        np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())
