"""What a quantized file records of where it came from, and how that is read back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qtool.errors import RecipeError
from qtool.ir import Graph, Json
from qtool.quantize.calibrate import Calibrated
from qtool.recipe.load import data_config
from qtool.recipe.schema import DataConfig, Mode, Recipe


def training_meta(recipe: Recipe, data_hash: str, samples: int) -> dict[str, Json]:
    """The metadata of a trained graph: qtool's version, the recipe as resolved, the hash of the training data and how
    many samples were seen."""
    used: Json = {"sha256": data_hash, "samples": samples}
    return {"qtool": _version(), "recipe": dict(recipe.resolved), "training": used}


def _version() -> str:
    try:
        return version("qtool")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+source"


def provenance_of(recipe: Recipe, calibrated: Calibrated, data_hash: str) -> dict[str, Json]:
    """The metadata of a quantized graph: qtool's version, the recipe as resolved, the calibration data.

    Where the data lie is recorded as seen from the quantized file, so that both may move together. ``data_hash`` is ""
    where there were no data.
    """
    if recipe.mode is Mode.QAT:
        return training_meta(recipe, data_hash, calibrated.samples)
    used: Json = None
    if data_hash and recipe.calibration is not None:
        used = {"sha256": data_hash, "samples": calibrated.samples, "data": _relative(recipe)}
    return {"qtool": _version(), "recipe": dict(recipe.resolved), "calibration": used}


def _relative(recipe: Recipe) -> str:
    assert recipe.calibration is not None
    folder = os.path.realpath(recipe.output.parent)
    return os.path.relpath(os.path.realpath(recipe.calibration.data), folder)


def recorded_calibration(graph: Graph, file: Path) -> DataConfig | None:
    """The calibration data that a quantized file records; None where it records none, or they are no longer there.

    The file may hold anything: what no recipe could say counts as nothing.
    """
    used, recipe = (_mapping(graph.meta.get(key)) for key in ("calibration", "recipe"))
    config, place = _mapping(recipe.get("calibration")), used.get("data")
    if not isinstance(place, str):
        return None
    try:
        data = Path(os.path.normpath(Path(os.path.realpath(file)).parent / place))
        # Labels are not for calibration, and the recipe's folder, where they lie, is not recorded.
        kept = {key: value for key, value in config.items() if key not in ("labels", "batches") and value != ""}
        return data_config({**kept, "data": str(data)}, data.parent) if data.exists() else None
    except (RecipeError, TypeError, ValueError, OSError, RecursionError):
        return None


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}
