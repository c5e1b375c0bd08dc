"""Small data and models that only have inputs and outputs, for the tests of data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qtool.ir import DType, Graph, Node, Value
from qtool.quantize.data import Dataset, open_data
from qtool.recipe.schema import DataConfig

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 1, 4, 4), np.float32)
Y = RNG.integers(0, 10, 50)


def model(shapes: dict[str, tuple] | None = None, output: tuple = ("N", 10), dtype: DType = DType.FLOAT32) -> Graph:
    """A graph of which only inputs and outputs matter."""
    shapes = shapes or {"image": ("N", 1, 4, 4)}
    values = {name: Value(name, dtype, shape) for name, shape in shapes.items()}
    values["out"] = Value("out", DType.FLOAT32, output)
    return Graph("m", tuple(shapes), ("out",), (Node("f", "out", tuple(shapes), ("out",)),), values, {})


def opened(path: Path, graph: Graph | None = None, **config: object) -> Dataset:
    return open_data(DataConfig(path, **config), graph or model())


def gathered(data: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    batches = list(data.batches())
    feeds = {name: np.concatenate([feeds[name] for feeds, _ in batches]) for name in batches[0][0]}
    labels = [labels for _, labels in batches]
    return feeds, None if labels[0] is None else np.concatenate(labels)


def folder_of(path: Path, **arrays: np.ndarray) -> Path:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


def saved(path: Path, function=np.savez, **arrays: np.ndarray) -> Path:
    function(path, **arrays)
    return path
