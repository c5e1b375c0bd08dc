"""Runs a model on arrays of files, and writes what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from qtool.engine.session import Session
from qtool.errors import DataError
from qtool.ir import Array
from qtool.ir.files import atomic_write
from qtool.ir.zipwriter import write_archive
from qtool.quantize.data import Dataset
from qtool.quantize.data_sources import data_errors, npy_source
from qtool.quantize.data_state import State, run_step


@dataclass(frozen=True)
class OutputSummary:
    """One output. ``low``, ``high`` and ``mean`` are None where ``finite`` is False, for NaN or Inf, or it is empty."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float | None
    high: float | None
    mean: float | None
    finite: bool


def read_arrays(files: Mapping[str, Path]) -> dict[str, Array]:
    """The arrays of ``.npy`` files by input name, mapped. DataError for a file that is none, or is cut off."""
    arrays: dict[str, Array] = {}
    for name, path in files.items():
        npy_source(path)  # checks the header against the size of the file: a map must not reach past its end
        with data_errors(str(path)):
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return arrays


def run_dataset(session: Session, data: Dataset, progress: Callable[[int], None] | None = None) -> dict[str, Array]:
    """Runs batch by batch; the outputs of all batches, joined along the first axis, and the last state of a model.

    DataError where an output has no such axis, or other sizes differ between batches.
    """
    parts: dict[str, list[Array]] = {name: [] for name in session.graph.outputs}
    done = 0
    state = State(data.carry)
    for feeds in data.feeds():
        for name, array in run_step(session, state, feeds).items():
            parts[name] = [array] if name in data.carry else [*parts[name], array]
        done += len(next(iter(feeds.values())))
        if progress is not None:
            progress(done)
    return {name: _joined(name, arrays) for name, arrays in parts.items()}


def _joined(name: str, arrays: list[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    shapes = {array.shape[1:] if array.ndim else None for array in arrays}
    if len(shapes) > 1 or None in shapes:
        raise DataError(
            f"output '{name}' cannot be joined batch by batch: it has shape {arrays[0].shape} for the first one;"
            " run all samples at once with a larger --batch-size"
        )
    return np.concatenate(arrays)


def summarize(outputs: Mapping[str, Array]) -> tuple[OutputSummary, ...]:
    """Shapes and ranges, in the order of the outputs."""
    return tuple(_summary(name, array) for name, array in outputs.items())


def _summary(name: str, array: Array) -> OutputSummary:
    finite = bool(np.isfinite(array).all())
    kind = (name, array.dtype.name, array.shape)
    if not array.size or not finite:
        return OutputSummary(*kind, None, None, None, finite)
    mean = float(array.mean(dtype=np.float64))
    return OutputSummary(*kind, float(array.min()), float(array.max()), mean, finite)


def write_outputs(outputs: Mapping[str, Array], path: Path) -> None:
    """An ``.npz`` file with an array for each output, or an ``.npy`` file of the only one; whole or not at all.

    In an ``.npz``, characters of a name other than letters, digits and ``_.-~/`` are escaped as %XX.
    """
    with atomic_write(path) as file:
        if path.suffix == ".npy":
            (array,) = outputs.values()
            np.lib.format.write_array(file, array, allow_pickle=False)
        else:
            write_archive(file, ((f"{quote(name)}.npy", array) for name, array in outputs.items()))
