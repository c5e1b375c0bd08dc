"""The shadow view: what each quantized layer gives beside its float twin on the same input, summed up over runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from qtool.analysis.advice import LayerError
from qtool.analysis.shadow import shadow_graph
from qtool.analysis.signal import Signal, pieces
from qtool.engine.session import BodySession
from qtool.ir import Array, Graph, Node, QParams, bodies_by_path, body_path
from qtool.passes import quantized_name


class Shadows:
    """The layers of a quantized graph and of its bodies, beside those of the fused graph.

    ``graph`` is the quantized one with the float twins in it. Whoever runs it gives its outputs to ``add`` and lets
    bodies run by ``run_body``, so that they are compared each time they run.
    """

    def __init__(self, fused: Graph, quantized: Graph, threads: int, isa: str | None) -> None:
        shadowed, inner = shadow_graph(fused, quantized), bodies_by_path(fused)
        self.graph = shadowed.graph
        self._producers = quantized.producers
        self._twins = shadowed.twins
        self._shadows = {name: _Shadow(quantized.values[name].qparams) for name in shadowed.twins}
        found = bodies_by_path(quantized)
        self._bodies = {path: Shadows(inner[path], body, threads, isa) for path, body in found.items()}
        self._sessions = {
            path: BodySession(body.graph, threads, isa, run_body=body.run_body) for path, body in self._bodies.items()
        }

    def add(self, stored: Mapping[str, Array]) -> None:
        """What a run of ``graph`` gave."""
        for name, shadow in self._shadows.items():
            if stored[name].size:  # a loop may begin with nothing
                shadow.add(stored[self._twins[name]], stored[name])

    def run_body(self, node: Node, name: str, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs a body, and compares its layers."""
        path = body_path(node.name, name)
        stored = self._sessions[path].run(feeds)
        self._bodies[path].add(stored)
        return stored

    def rows(self) -> Iterator[LayerError]:
        """A row for each layer that was seen."""
        for name, shadow in self._shadows.items():
            if shadow.seen:
                yield shadow.row(self._producers[name])
        for path, body in self._bodies.items():
            yield from (replace(row, layer=body_path(path, row.layer)) for row in body.rows())


class _Shadow:
    """The error of one layer, and what of it comes from rounding and clipping its output."""

    def __init__(self, qparams: QParams | None) -> None:
        self._qparams = qparams
        self._all, self._rounding = Signal(), Signal()
        self._clipped = self._count = 0
        self.seen = False

    def add(self, twin: Array, stored: Array) -> None:
        self.seen = True
        for real, quantized in pieces(twin, stored):
            if self._qparams is None:
                self._all.add(real, quantized)
            else:
                self._all.add(real, self._qparams.dequantize(quantized))
                self._round(real, self._qparams)

    def _round(self, real: Array, qparams: QParams) -> None:
        low, high = (np.float32(q) for q in qparams.limits)
        half = np.float32(0.5)
        with np.errstate(over="ignore", invalid="ignore"):
            self._rounding.add(real, qparams.dequantize(qparams.quantize(real)))
            ideal = real / qparams.scale[0] + np.float32(qparams.zero_point[0])
        self._clipped += int(np.count_nonzero((ideal < low - half) | (ideal > high + half)))
        self._count += real.size

    def row(self, node: Node) -> LayerError:
        if not self._count:
            return error_row(node, self._all)
        error = self._all
        return LayerError(
            layer_name(node),
            node.op,
            error.sqnr_db,
            error.max_error,
            error.cosine,
            self._rounding.sqnr_db,
            self._clipped / self._count,
        )


def layer_name(node: Node) -> str:
    """What a row calls a node: the name that a rule of the recipe can have, or the value that is quantized."""
    return node.name.removesuffix(quantized_name("")) if node.op == "quantize" else node.name


def error_row(node: Node, signal: Signal, name: str = "") -> LayerError:
    return LayerError(name or layer_name(node), node.op, signal.sqnr_db, signal.max_error, signal.cosine)
