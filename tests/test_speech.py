"""Speech models that carry state, each quantized by one recipe; QTOOL_TEST_DATA says where the files are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx is not installed")

from click.testing import CliRunner

from qtool.cli import cli

DATA = Path(os.environ.get("QTOOL_TEST_DATA", "/nonexistent")) / "speech"
RECIPES = Path(__file__).resolve().parent / "recipes"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="QTOOL_TEST_DATA holds no speech")


def quantized(name: str, model: str, folder: Path, *more: str) -> tuple[int, dict]:
    changes = {
        "model": DATA / model,
        "output": folder / "out.npz",
        "evaluation.data": DATA / "silero_test.wav",
        "latency": "null",
    }
    arguments = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    arguments += [part for change in more for part in ("--set", change)]
    result = CliRunner().invoke(cli, ["quantize", "--recipe", str(RECIPES / name), "--json", *arguments])
    assert result.exit_code in (0, 3), result.output
    return result.exit_code, json.loads(result.stdout)


def test_dtln(tmp_path):
    code, report = quantized("dtln.yaml", "dtln_model_1.onnx", tmp_path)
    assert code == 0
    assert report["accuracy"]["n"] == 7497
    assert report["accuracy"]["against"] == "float outputs"
    assert list(report["accuracy"]["outputs"]) == ["activation_2"]
    assert report["accuracy"]["quant"] >= 30
    precision = {layer["name"]: layer["precision"] for layer in report["layers"]}
    assert [precision[name] for name in ("lstm_4", "lstm_5", "dense_2")] == ["int8 dynamic"] * 3


def test_silero_vad(tmp_path):
    """The LSTM of the branch that runs is quantized; every frame's probability of speech stays close."""
    code, report = quantized("silero_vad.yaml", "silero_vad.onnx", tmp_path)
    assert code == 0
    assert report["accuracy"]["n"] == 1875
    assert list(report["accuracy"]["outputs"]) == ["output"]
    assert 0 < report["accuracy"]["quant"] <= 0.02


def test_a_gate_that_is_missed(tmp_path):
    code, report = quantized("dtln.yaml", "dtln_model_1.onnx", tmp_path, "evaluation.batches=50", "gates.min_metric=60")
    assert code == 3
    assert [gate["name"] for gate in report["gates"] if not gate["passed"]] == ["min_metric"]
