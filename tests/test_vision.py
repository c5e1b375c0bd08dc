"""Two detectors of faces by their recipes; QTOOL_TEST_DATA says where the models and pictures are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from qtool.cli import cli

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")

RECIPES = Path(__file__).resolve().parent / "recipes"
DATA = Path(os.environ.get("QTOOL_TEST_DATA", "/nonexistent"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "vision").is_dir(), reason="QTOOL_TEST_DATA holds no vision"),
    pytest.mark.skipif(not (DATA / "imagenet").is_dir(), reason="QTOOL_TEST_DATA holds no imagenet"),
]


@pytest.mark.parametrize(
    ("recipe", "model", "outputs"),
    [("ultraface", "ultraface_version-RFB-320.onnx", 2), ("yunet", "yunet_n_320_320.onnx", 12)],
)
def test_every_output_keeps_25_db(recipe, model, outputs, tmp_path):
    changes = {
        "model": DATA / "vision" / model,
        "output": tmp_path / "out.npz",
        "calibration.data": DATA / "imagenet" / "images",
        "evaluation.data": DATA / "imagenet" / "images",
    }
    arguments = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(cli, ["quantize", "--recipe", str(RECIPES / f"{recipe}.yaml"), "--json", *arguments])
    assert result.exit_code == 0, result.output
    accuracy = json.loads(result.stdout)["accuracy"]
    assert len(accuracy["outputs"]) == outputs
    assert accuracy["quant"] == min(accuracy["outputs"].values()) >= 25.0
