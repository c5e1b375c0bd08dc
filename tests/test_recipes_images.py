"""Real models from their PyTorch checkpoints, each by one recipe; QTOOL_TEST_DATA says where files and pictures are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtool.pipeline import quantize_recipe
from qtool.recipe.load import load_recipe
from qtool.report.types import Report

pytest.importorskip("PIL.Image", reason="Pillow is not installed")
DATA = Path(os.environ.get("QTOOL_TEST_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(not (DATA / "denoise").is_dir(), reason="QTOOL_TEST_DATA holds no cifar10 and denoise")
RECIPES = Path(__file__).parent / "recipes"


def run(name: str, weights: str, data: str, output: Path, *overrides: str) -> Report:
    files = {"model.weights": weights, "calibration.data": data, "evaluation.data": data}
    paths = [f"{key}={json.dumps(str(DATA / file))}" for key, file in files.items()]
    recipe = load_recipe(RECIPES / name, [*paths, f"output={json.dumps(str(output))}", *overrides])
    return quantize_recipe(recipe, _silent)


@contextmanager
def _silent(_label: str, _total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def test_resnet20_on_encoded_pictures(tmp_path):
    """On these 900 it is 79.2 and 79.4 %; the limit is five pictures."""
    limits = ("calibration.samples=[0, 128]", "evaluation.samples=[512, 1412]", "gates={max_accuracy_drop: 0.006}")
    files = ("cifar10/resnet20-12fca82f.th", "cifar10/test5000_jpegbytes.npz")
    report = run("resnet20.yaml", *files, tmp_path / "r.npz", *limits)
    assert report.accuracy.n == 900
    assert report.accuracy.float == pytest.approx(0.792, abs=0.004)
    assert report.gates[0].passed
    assert not report.fallbacks
    assert report.provenance["calibration"]["samples"] == 128


def test_dncnn_on_noisy_pictures(tmp_path):
    """On three of the pictures, 29.66 and 29.62 dB; a wrong target or sign costs several."""
    limits = ("calibration.samples=[0, 2]", "evaluation.samples=[4, 7]")
    files = ("denoise/DnCNN_sigma25_state_dict.pth", "denoise/Set12")
    report = run("dncnn.yaml", *files, tmp_path / "d.npz", *limits)
    assert (report.accuracy.metric, report.accuracy.n) == ("psnr", 3)
    assert report.accuracy.float == pytest.approx(29.663, abs=0.005)
    assert report.gates[0].passed
    assert not report.fallbacks
