"""Runs a graph: in native code as far as that goes, on the NumPy reference for the rest; int8 gives the same bits."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qtool import native
from qtool.engine import reference
from qtool.engine.control import RunBody
from qtool.engine.lowering import Source
from qtool.engine.lowering.groups import JOIN
from qtool.engine.partition import CONTROL, Stage, fallbacks, layouts_wanted, stages
from qtool.engine.program import (
    Look,
    Machine,
    NativePart,
    Part,
    ReferencePart,
    Timing,
    constant_values,
    needed_outputs,
    without_constants,
)
from qtool.engine.shapes import Sizes, concrete_shapes, nominal_shapes
from qtool.errors import DataError, EngineError, ModelError
from qtool.ir import Array, Graph, Node, body_path
from qtool.ops.qdq import lower_qdq

Engine = Literal["auto", "native", "reference"]
PLANS_KEPT = 4
"""Plans of different input shapes that a session remembers; each has packed weights of its own."""

_Kind = tuple["np.dtype[np.generic]", Sizes]
"""Element type and shape of an input."""


@dataclass(frozen=True)
class _Program:
    """The parts that run for inputs of some kinds, and for each the names of what nobody needs after it."""

    parts: tuple[Part, ...]
    done: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(parts: Sequence[Part], graph: Graph) -> _Program:
        last_use = {name: index for index, part in enumerate(parts) for name in part.inputs}
        kept = set(graph.outputs)
        done = (
            tuple(name for name in part.inputs if last_use[name] == index and name not in kept)
            for index, part in enumerate(parts)
        )
        return _Program(tuple(parts), tuple(done))


class Session:
    """A graph made ready to run.

    ``threads`` counts those of the native engine; results do not depend on it. ``isa`` is "scalar", "avx2",
    "avxvnni", "avx512vnni", "amx" or None for the best that the CPU has. ``engine`` "auto" takes the reference where
    the native library is not there, "native" raises EngineError then, and "reference" never asks.

    A graph with quantize and dequantize nodes around float operators (``debug: true``, or one that was imported) runs
    as the int8 graph it stands for. A plan is made for each set of input shapes when it is first met. ``run`` may be
    called from several threads; calls take turns.

    Which body of control flow runs, and how often, is decided in Python; each body has a session of its own.
    ``run_body`` runs them instead, for those who want to look inside. ``watched`` names the values that ``watch``
    shows.
    """

    def __init__(
        self,
        graph: Graph,
        threads: int = 1,
        isa: str | None = None,
        engine: Engine = "auto",
        *,
        run_body: RunBody | None = None,
        watched: Collection[str] = (),
    ) -> None:
        if engine not in ("auto", "native", "reference"):
            raise EngineError(f"got engine {engine!r}, expected auto, native or reference")
        if threads < 1:
            raise EngineError(f"got {threads} threads, expected at least 1")
        if engine == "native" and not native.available():
            raise EngineError(native.why_not())
        self.graph = lower_qdq(graph) if graph.is_quantized else graph
        self.engine: Engine = "native" if engine != "reference" and native.available() else "reference"
        self._machine = Machine(native.choose_isa(isa), threads) if self.engine == "native" else None
        self._constants = constant_values(self.graph)
        self._kept = self._constants.keys() | set(self.graph.inputs)
        self._programs: OrderedDict[tuple[_Kind, ...], _Program] = OrderedDict()
        self._bodies = _Bodies(self._body_session, run_body)
        self._watched = frozenset(watched)
        self._lock = threading.Lock()

    def _body_session(self, body: Graph) -> BodySession:
        threads = self._machine.threads if self._machine else 1
        return BodySession(body, threads, self.isa or None, self.engine)

    @property
    def isa(self) -> str:
        """The instruction set in use; "" on the reference."""
        return self._machine.isa if self._machine else ""

    @property
    def fallbacks(self) -> Mapping[str, str]:
        """The nodes that run on the NumPy reference -> why; for the smallest batch.

        Those of bodies are named as ``all_nodes`` does, for the sizes that the body was last run with. A body that
        cannot be told of before it runs is named itself.
        """
        source = self._source(concrete_shapes(self.graph, self._usual_shapes()))
        found: dict[str, str] = {}
        for node in self.graph.nodes:
            found.update(self._bodies.fallbacks(node))
        unsupported = self._unsupported(source)
        return {**{name: why for name, why in unsupported.items() if why != CONTROL}, **found}

    def _usual_shapes(self) -> dict[str, Sizes]:
        return nominal_shapes(self.graph)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's outputs; quantized ones as the stored integers.

        DataError for feeds that do not fit the graph's inputs in name, element type or shape.
        """
        with self._lock:
            arrays, program = self._entered(feeds)
            return self._walk(program, arrays, lambda part: part.run(arrays))

    def watch(self, feeds: Mapping[str, Array], look: Look) -> dict[str, Array]:
        """As ``run``; ``look`` gets the name of each watched value and the value as soon as it is computed.

        What it gets lies in the engine's memory, its axes in any order there, and is gone after the call.
        """
        with self._lock:
            arrays, program = self._entered(feeds)
            for name in sorted(self._watched & self._constants.keys()):
                look(name, self._constants[name])
            return self._walk(program, arrays, lambda part: part.watch(arrays, look))

    def profile(self, feeds: Mapping[str, Array]) -> list[Timing]:
        """What each operator took, in the order in which they ran; (node name, kernel, seconds)."""
        return self.run_profiled(feeds)[1]

    def run_profiled(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], list[Timing]]:
        """The outputs, and what each operator took."""
        timings: list[Timing] = []

        def timed(part: Part) -> Mapping[str, Array]:
            made, times = part.profile(arrays)
            timings.extend(times)
            return made

        with self._lock:
            arrays, program = self._entered(feeds)
            return self._walk(program, arrays, timed), timings

    def _check(self, feeds: Mapping[str, Array]) -> None:
        for name, array in reference.check_feeds(self.graph, feeds).items():
            if array.size == 0:
                raise DataError(f"input '{name}': got shape {array.shape}, which holds no data")

    def _walk(
        self, program: _Program, known: dict[str, Array], run: Callable[[Part], Mapping[str, Array]]
    ) -> dict[str, Array]:
        """Runs the parts, whose results replace in ``known`` what nobody needs any more; gives the outputs."""
        for part, done in zip(program.parts, program.done, strict=True):
            known.update(run(part))
            for name in done:
                del known[name]
        if self._kept.isdisjoint(self.graph.outputs):
            return {name: known[name] for name in self.graph.outputs}
        return {name: self._result(name, known) for name in self.graph.outputs}

    def _result(self, name: str, known: Mapping[str, Array]) -> Array:
        """An output; a copy of what belongs to the caller or to the graph."""
        if name in self._constants:
            return self._constants[name].copy()
        return np.array(known[name]) if name in self.graph.inputs else known[name]

    def _entered(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], _Program]:
        """The feeds as arrays, and the program for such; the least recently used of too many is dropped.

        Feeds are checked when a program is made, so that any of the same kinds fit.
        """
        arrays = {name: np.asarray(feeds[name]) for name in self.graph.inputs if name in feeds}
        kinds = tuple((array.dtype, array.shape) for array in arrays.values())
        program = self._programs.get(kinds) if len(feeds) == len(arrays) == len(self.graph.inputs) else None
        if program is None:
            self._check(feeds)
            while len(self._programs) >= PLANS_KEPT:
                self._programs.popitem(last=False)
            parts = self._planned({name: array.shape for name, array in arrays.items()})
            program = _Program.of(parts, self.graph)
            self._programs[kinds] = program
        self._programs.move_to_end(kinds)
        return arrays, program

    def _planned(self, fed: Mapping[str, Sizes]) -> list[Part]:
        return self._make_parts(self._source(concrete_shapes(self.graph, fed)))

    def _source(self, shapes: Mapping[str, Sizes]) -> Source:
        return Source(self.graph, shapes, self._constants)

    def _unsupported(self, source: Source) -> dict[str, str]:
        nodes = without_constants(self.graph, self._constants).nodes
        if self._machine is None:
            return {node.name: CONTROL if node.graphs else "the native engine is not used" for node in nodes}
        return fallbacks(source, nodes)

    def _make_parts(self, source: Source) -> list[Part]:
        nodes = without_constants(self.graph, self._constants).nodes
        unsupported = self._unsupported(source)
        source = replace(source, wants=layouts_wanted(nodes, unsupported))
        planned = stages(nodes, unsupported)
        outputs = needed_outputs(self.graph, (stage.nodes for stage in planned))
        return [self._part(source, stage, names) for stage, names in zip(planned, outputs, strict=True)]

    def _part(self, source: Source, stage: Stage, outputs: tuple[str, ...]) -> Part:
        if stage.native and self._machine is not None:
            return NativePart(source, stage.nodes, outputs, self._watched, self._machine)
        return ReferencePart(source, stage.nodes, outputs, self._watched, self._bodies)


class BodySession(Session):
    """A body of control flow made ready to run.

    Unlike a graph it may meet arrays without elements, and sizes that only the run itself can judge; it runs on the
    reference then.
    """

    def _check(self, feeds: Mapping[str, Array]) -> None:
        reference.check_feeds(self.graph, feeds)

    def _planned(self, fed: Mapping[str, Sizes]) -> list[Part]:
        if all(0 not in shape for shape in fed.values()):
            try:
                return super()._planned(fed)
            except ModelError:
                pass
        nodes = without_constants(self.graph, self._constants).nodes
        (outputs,) = needed_outputs(self.graph, [nodes])
        return [ReferencePart(self._source(fed), nodes, outputs, self._watched, self._bodies)]

    def _usual_shapes(self) -> dict[str, Sizes]:
        """Those of the last run, if there was one."""
        if not self._programs:
            return nominal_shapes(self.graph)
        shapes = [shape for _, shape in next(reversed(self._programs))]
        return dict(zip(self.graph.inputs, shapes, strict=True))


class _Bodies:
    """The sessions of a graph's bodies, made when they are first needed."""

    def __init__(self, make: Callable[[Graph], BodySession], run_body: RunBody | None) -> None:
        self._make = make
        self._run_body = run_body
        self._sessions: dict[str, BodySession] = {}

    def run(self, node: Node, name: str, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        if self._run_body is not None:
            return self._run_body(node, name, feeds)
        return self._session(node, name).run(feeds)

    def profile(self, node: Node, name: str, feeds: Mapping[str, Array]) -> tuple[Mapping[str, Array], list[Timing]]:
        made, timings = self._session(node, name).run_profiled(feeds)
        path = body_path(node.name, name)
        return made, [t._replace(node=JOIN.join(body_path(path, part) for part in t.node.split(JOIN))) for t in timings]

    def fallbacks(self, node: Node) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in node.graphs:
            path = body_path(node.name, name)
            try:
                inner = self._session(node, name).fallbacks
            except ModelError:
                found[path] = "which of its nodes run on the reference shows when it has run"
            else:
                found.update({body_path(path, key): why for key, why in inner.items()})
        return found

    def _session(self, node: Node, name: str) -> BodySession:
        path = body_path(node.name, name)
        if path not in self._sessions:
            self._sessions[path] = self._make(node.graphs[name])
        return self._sessions[path]
