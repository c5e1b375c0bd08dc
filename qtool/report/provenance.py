"""What a quantized file records of where it came from, and how that is read back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qtool.ir import Graph, Json
from qtool.quantize.calibrate import Calibrated
from qtool.recipe.schema import DataConfig, Preprocess, Recipe


def provenance_of(recipe: Recipe, calibrated: Calibrated, data_hash: str) -> dict[str, Json]:
    """The metadata of a quantized graph: qtool's version, the recipe as resolved, the calibration data.

    Where the data lie is recorded as seen from the quantized file, so that both may move together. ``data_hash`` is ""
    where there were no data.
    """
    try:
        installed = version("qtool")
    except PackageNotFoundError:  # a source tree that is not installed
        installed = "0+source"
    used: Json = None
    if data_hash and recipe.calibration is not None:
        used = {"sha256": data_hash, "samples": calibrated.samples, "data": _relative(recipe)}
    return {"qtool": installed, "recipe": dict(recipe.resolved), "calibration": used}


def _relative(recipe: Recipe) -> str:
    assert recipe.calibration is not None
    folder = os.path.realpath(recipe.output.parent)
    return os.path.relpath(os.path.realpath(recipe.calibration.data), folder)


def recorded_calibration(graph: Graph, file: Path) -> DataConfig | None:
    """The calibration data that a quantized file records; None where it records none, or they are no longer there.

    The file may hold anything: what is not as ``provenance_of`` writes it counts as nothing.
    """
    used, recipe = (_mapping(graph.meta.get(key)) for key in ("calibration", "recipe"))
    config = _mapping(recipe.get("calibration"))
    place, split, size = used.get("data"), config.get("split", ""), config.get("batch_size", 32)
    if not isinstance(place, str) or not isinstance(split, str) or not _is_count(size):
        return None
    data = Path(os.path.normpath(Path(os.path.realpath(file)).parent / place))
    try:
        return DataConfig(data, split, size, preprocess=_preprocess(config)) if data.exists() else None
    except (TypeError, ValueError, OSError):
        return None


def _preprocess(config: Mapping[str, Any]) -> Preprocess | None:
    """TypeError or ValueError for what a recipe would not take."""
    found = _mapping(config.get("preprocess"))
    if not found:
        return None
    resize, crop = found.get("resize"), found.get("crop")
    if not all(size is None or _is_count(size) for size in (resize, crop)):
        raise ValueError("sizes are counts")
    return Preprocess(resize, crop, _colours(found.get("mean", (0, 0, 0))), _colours(found.get("std", (1, 1, 1))))


def _colours(numbers: Any) -> tuple[float, float, float]:
    red, green, blue = numbers
    return float(red), float(green), float(blue)


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _is_count(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found > 0
