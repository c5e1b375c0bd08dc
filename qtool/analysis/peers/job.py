"""What every engine is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.analysis.latency import random_arrays
from qtool.exporters import export_onnx
from qtool.ir import Array, Graph

Run = Callable[[Mapping[str, Array]], Sequence[Any]]
"""Runs a model on arrays by the names of the graph's inputs; gives its outputs in order."""

CALIBRATION_BATCHES = 2
"""Random ones, for engines that quantize the float model themselves: right for timing, and for nothing else."""


@dataclass(frozen=True)
class Job:
    """A model to be run elsewhere.

    ``graph`` is what qtool runs and ``real`` the float graph that it was quantized from: itself for a float one, None
    where nobody knows. ``source`` is where the graph came from. ``feeds`` are the inputs it will be timed with.
    """

    graph: Graph
    real: Graph | None
    feeds: Mapping[str, Array]
    threads: int = 1
    source: str = ""

    @property
    def quantized(self) -> bool:
        return self.graph.is_quantized

    @property
    def dynamic(self) -> bool:
        """Whether activations are quantized at run time, in some layer at least."""
        return any(node.op.endswith("_dynamic") for node in self.graph.nodes)

    def calibration(self) -> list[dict[str, Array]]:
        """Inputs of the same shapes, for engines that calibrate."""
        return [random_arrays(self.feeds, seed) for seed in range(CALIBRATION_BATCHES)]

    def file(self, folder: Path) -> Path:
        """The graph as ONNX: the ``.onnx`` file that it came from, or what ``qtool export`` makes of it."""
        return Path(self.source) if self.source.endswith(".onnx") else exported(self.graph, folder / "model.onnx")

    def float_file(self, folder: Path) -> Path:
        """The float graph as ONNX."""
        assert self.real is not None
        return exported(self.real, folder / "float.onnx")


def exported(graph: Graph, path: Path) -> Path:
    """The path, with the graph exported to it."""
    export_onnx(graph, path)
    return path


@dataclass(frozen=True)
class Way:
    """One thing that an engine can do with a model."""

    how: str
    open: Callable[[], Run]
