"""Silero VAD quantized by its recipe, over a minute of speech beside the float model in ONNX Runtime."""

from __future__ import annotations

import wave

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from test_speech import DATA, quantized  # noqa: E402

import qtool  # noqa: E402
from qtool.analysis.inference import run_dataset  # noqa: E402
from qtool.ir.npz import load  # noqa: E402
from qtool.pipeline import load_model  # noqa: E402
from qtool.quantize.data import open_data  # noqa: E402
from qtool.recipe.schema import Audio, DataConfig  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="QTOOL_TEST_DATA holds no speech"),
]
RATE, WINDOW, CONTEXT = 16000, 512, 64
WAV, MODEL = DATA / "silero_test.wav", DATA / "silero_vad.onnx"


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The float model's probabilities as its authors run it: frame by frame, each behind the end of the last one."""
    with wave.open(str(WAV), "rb") as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(32768)
    session = ort.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT), np.float32)
    found = []
    for frame in sound.reshape(-1, 1, WINDOW):
        feeds = {"input": np.concatenate([before, frame], axis=1), "state": state, "sr": np.array(RATE, np.int64)}
        probability, state = session.run(["output", "stateN"], feeds)
        before = frame[:, -CONTEXT:]
        found.append(probability[0])
    return np.array(found)


def probabilities(graph: qtool.Graph) -> np.ndarray:
    audio = Audio(RATE, WINDOW, context=CONTEXT)
    config = DataConfig(WAV, batch_size=1, audio=audio, carry={"stateN": "state"}, constants={"sr": RATE})
    return run_dataset(qtool.Session(graph), open_data(config, graph))["output"]


def test_float_probabilities(expected):
    assert 0.2 < np.mean(expected > 0.5) < 0.9, "there are speech and silence"
    np.testing.assert_allclose(probabilities(load_model(MODEL)), expected, rtol=0, atol=1e-5)


def test_quantized_probabilities(expected, tmp_path):
    code, report = quantized("silero_vad.yaml", "silero_vad.onnx", tmp_path)
    found = probabilities(load(report["output"]))
    assert code == 0
    assert found.shape == expected.shape == (1875, 1)
    assert np.abs(found - expected).max() <= 0.02
    assert report["accuracy"]["quant"] == pytest.approx(float(np.abs(found - expected).max()), abs=1e-5)
    precisions = [layer["precision"] for layer in report["layers"]]
    assert precisions.count("int8 dynamic") == 2, "the LSTM of either branch"
