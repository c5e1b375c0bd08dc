"""The parts that a graph is run in: native programs, and what the reference runs between them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from qtool.engine import reference
from qtool.engine.control import RunBody
from qtool.engine.in_place import write_in_place
from qtool.engine.lowering import Binding, Role, Segment, Source, lower, make_groups
from qtool.engine.memory import Life, place
from qtool.engine.pieces import Cut, find_cut, read_by
from qtool.engine.shapes import Sizes
from qtool.errors import DataError, EngineError
from qtool.ir import Array, Graph, Node
from qtool.native import WHOLE, Buffer, Op, Pieces, Plan

Arrays = Mapping[str, Array]
T = TypeVar("T")
Look = Callable[[str, Array], None]
"""Gets the name of a value and what it is, which is only there during the call."""


class Timing(NamedTuple):
    """What one operator took: the node's name (of the several that it runs, joined by " + "), the kernel, seconds."""

    node: str
    kernel: str
    seconds: float


class Part(Protocol):
    """A stretch of the graph."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The values it reads from outside."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The values it makes that are read outside."""

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """The outputs."""

    def watch(self, arrays: Arrays, look: Look) -> dict[str, Array]:
        """As ``run``; shows the watched values one by one as soon as they are there."""

    def profile(self, arrays: Arrays) -> tuple[dict[str, Array], list[Timing]]:
        """The outputs, and what each operator took."""


class Bodies(Protocol):
    """What runs the bodies of a graph's control flow."""

    def run(self, node: Node, name: str, feeds: Arrays) -> Arrays:
        """The outputs of a node's body of that name."""

    def profile(self, node: Node, name: str, feeds: Arrays) -> tuple[Arrays, list[Timing]]:
        """The outputs, and what each operator took."""


class ReferencePart:
    """Nodes that run on the NumPy reference, and control flow."""

    def __init__(
        self, source: Source, nodes: Sequence[Node], outputs: Sequence[str], watched: Collection[str], bodies: Bodies
    ) -> None:
        graph, constants = source.graph, source.constants
        made = {out for node in nodes for out in node.outputs}
        read = dict.fromkeys(name for node in nodes for name in node.inputs if name)
        self._graph = graph
        self._constants = constants
        self._nodes = tuple(nodes)
        self._watched = watched
        self._bodies = bodies
        self.inputs = tuple(name for name in read if name not in made and name not in constants)
        self.outputs = tuple(outputs)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        known = self._known(arrays)
        for node in self._nodes:
            self._run_node(node, known, self._bodies.run)
        return {name: known[name] for name in self.outputs}

    def watch(self, arrays: Arrays, look: Look) -> dict[str, Array]:
        known = self._known(arrays)
        for node in self._nodes:
            self._run_node(node, known, self._bodies.run)
            for name in node.outputs:
                if name in self._watched:
                    look(name, known[name])
        return {name: known[name] for name in self.outputs}

    def profile(self, arrays: Arrays) -> tuple[dict[str, Array], list[Timing]]:
        known = self._known(arrays)
        timings: list[Timing] = []
        for node in self._nodes:
            inside: list[Timing] = []

            def run_body(node: Node, name: str, feeds: Arrays, into: list[Timing] = inside) -> Arrays:
                made, times = self._bodies.profile(node, name, feeds)
                into += times
                return made

            start = time.perf_counter()
            self._run_node(node, known, run_body)
            seconds = time.perf_counter() - start - sum(timing.seconds for timing in inside)
            timings += [Timing(node.name, "control" if node.graphs else "reference", max(0.0, seconds)), *inside]
        return {name: known[name] for name in self.outputs}, timings

    def _known(self, arrays: Arrays) -> dict[str, Array]:
        return {**self._constants, **{name: arrays[name] for name in self.inputs}}

    def _run_node(self, node: Node, known: dict[str, Array], run_body: RunBody) -> None:
        known.update(zip(node.outputs, reference.run_node(self._graph, node, known, run_body), strict=True))


@dataclass(frozen=True)
class Machine:
    """What native programs are made for."""

    isa: str
    threads: int


@dataclass(frozen=True)
class _Sight:
    """A watched value: after the first ``step`` steps it lies in ``buffer``, its axes in the order ``axes``."""

    step: int
    name: str
    buffer: int
    axes: Sizes


class NativePart:
    """Nodes that run in one native call."""

    def __init__(
        self,
        source: Source,
        nodes: Sequence[Node],
        outputs: Sequence[str],
        watched: Collection[str],
        machine: Machine,
    ) -> None:
        groups = make_groups(source, nodes, {*outputs, *watched})
        cut = find_cut(source, groups, outputs) if not watched else Cut(source)
        segment = Segment(cut.source, cut.pieces)
        for group in groups[: cut.groups]:
            lower(segment, group)
        segment.end_pieces(source, {*outputs, *read_by(groups[cut.groups :])})
        self._sights: list[_Sight] = []
        for group in groups[cut.groups :]:
            lower(segment, group)
            for name in group.nodes[-1].outputs:
                if name in watched:
                    self._sights.append(_sight(segment, name))
        for name in outputs:
            segment.node = name
            segment.leave(name)
        if not self._sights:  # which count the steps
            write_in_place(segment)
        self._nodes = [step.node for step in segment.steps]
        self._external = sorted(segment.bindings)
        self._bindings = [segment.bindings[buffer] for buffer in self._external]
        self._shapes = {
            name: (source.shapes[name], source.value(name).dtype.numpy)
            for name in (*outputs, *(sight.name for sight in self._sights))
        }
        self._plan = _make_plan(segment, self._sights, machine)
        self.inputs = tuple(binding.name for binding in self._bindings if binding.role is Role.INPUT)
        self.outputs = tuple(outputs)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        results = self._empty()
        self._call(self._plan.run, *self._bound(arrays, results))
        return results

    def watch(self, arrays: Arrays, look: Look) -> dict[str, Array]:
        results = self._empty()
        bound = self._bound(arrays, results)
        done = 0
        for sight in self._sights:
            self._call(self._plan.run_part, done, sight.step, *bound)
            done = sight.step
            look(sight.name, self._seen(sight, bound))
        self._call(self._plan.run_part, done, len(self._nodes), *bound)
        return results

    def _seen(self, sight: _Sight, bound: Sequence[Array]) -> Array:
        shape, dtype = self._shapes[sight.name]
        if sight.buffer in self._external:
            flat = bound[self._external.index(sight.buffer)].reshape(-1).view(dtype)
        else:
            flat = self._plan.view(sight.buffer, math.prod(shape) * dtype.itemsize).view(dtype)
        return flat.reshape([shape[axis] for axis in sight.axes]).transpose(np.argsort(sight.axes))

    def profile(self, arrays: Arrays) -> tuple[dict[str, Array], list[Timing]]:
        results = self._empty()
        seconds = self._call(self._plan.profile, *self._bound(arrays, results))
        return results, list(map(Timing, self._nodes, self._plan.kernels, seconds))

    @property
    def bytes(self) -> int:
        return self._plan.bytes

    def _call(self, call: Callable[..., T], *args: int | Array) -> T:
        """Runs the plan; DataError, as of the reference, for what an operator has to say of its data."""
        try:
            return call(*args)
        except EngineError as error:
            found = re.fullmatch(r"operator (\d+): (.*)", str(error))
            if found is None:
                raise
            raise DataError(f"'{self._nodes[int(found[1])]}': {found[2]}") from None

    def _empty(self) -> dict[str, Array]:
        return {name: np.empty(*self._shapes[name]) for name in self.outputs}

    def _bound(self, arrays: Arrays, results: Arrays) -> list[Array]:
        return [_array_of(binding, arrays, results) for binding in self._bindings]


def _sight(segment: Segment, name: str) -> _Sight:
    """Where a value lies once the steps so far have run."""
    buffer, layout = segment.found(name)
    return _Sight(len(segment.steps), name, buffer, layout.axes(len(segment.shape(name))))


def _array_of(binding: Binding, arrays: Arrays, results: Arrays) -> Array:
    if binding.array is not None:
        return binding.array
    if binding.role is Role.OUTPUT:
        return results[binding.name]
    array = arrays[binding.name]
    return array if array.flags.c_contiguous else array.copy(order="C")


def _make_plan(segment: Segment, sights: Sequence[_Sight], machine: Machine) -> Plan:
    """The native plan of a segment: arena buffers placed by when they live, some of them one on another."""
    homes = _share(segment, sights)
    arena = sorted({homes[buffer] for buffer in range(len(segment.sizes)) if buffer not in segment.bindings})
    lives = _lives(segment, sights, homes)
    offsets, size = place([lives[buffer] for buffer in arena])
    offset_of = dict(zip(arena, offsets, strict=True))
    buffers = [
        Buffer(
            bytes_,
            None if buffer in segment.bindings else offset_of[homes[buffer]],
            segment.piece_bytes.get(buffer, 0),
        )
        for buffer, bytes_ in enumerate(segment.sizes)
    ]
    ops = [Op(step.kind, step.inputs, step.output, step.args) for step in segment.steps]
    return Plan(ops, buffers, size, isa=machine.isa, threads=machine.threads, pieces=_pieces(segment))


def _pieces(segment: Segment) -> Pieces:
    """The steps for a piece come first."""
    counts = [step.pieces for step in segment.steps if step.pieces > 1]
    return Pieces(counts[0], len(counts)) if counts else WHOLE


def _share(segment: Segment, sights: Sequence[_Sight]) -> list[int]:
    """The buffer in whose place each one lies: the result of a step that may work in place takes that of its first
    input where nobody reads that any more."""
    last_read = {buffer: index for index, step in enumerate(segment.steps) for buffer in step.inputs}
    for sight in sights:
        last_read[sight.buffer] = max(sight.step, last_read.get(sight.buffer, 0))
    homes = list(range(len(segment.sizes)))
    for index, step in enumerate(segment.steps):
        source, target = step.inputs[0], step.output
        if source == target or {source, target} & segment.bindings.keys() or not step.in_place:
            continue
        same = segment.sizes[source] == segment.sizes[target]
        same = same and segment.piece_bytes.get(source) == segment.piece_bytes.get(target)
        if last_read[source] == index and same and homes[target] == target:
            homes[target] = homes[source]
    return homes


def _lives(segment: Segment, sights: Sequence[_Sight], homes: Sequence[int]) -> dict[int, Life]:
    """From the first step that writes a home's bytes to the last one that touches them, or that it is seen after."""
    touched: dict[int, list[int]] = {home: [] for home in homes}
    for index, step in enumerate(segment.steps):
        for buffer in (*step.inputs, step.output):
            touched[homes[buffer]].append(index)
    last_of_piece = max(0, _pieces(segment).ops - 1)
    for buffer in segment.piece_bytes:  # written, and read, as long as there are pieces
        touched[homes[buffer]] += [0, last_of_piece]
    for sight in sights:
        touched[homes[sight.buffer]].append(max(0, sight.step - 1))
    return {
        home: Life(segment.sizes[home], min(steps, default=0), max(steps, default=0)) for home, steps in touched.items()
    }


def constant_values(graph: Graph) -> dict[str, Array]:
    """The initializers, and every value that follows from them alone, computed once. Control flow runs each time, so
    that what happens within it can be looked at."""
    constants = dict(graph.initializers)
    for node in graph.nodes:
        if not node.graphs and all(name in constants for name in node.inputs if name):
            constants.update(zip(node.outputs, reference.run_node(graph, node, constants), strict=True))
    return constants


def needed_outputs(graph: Graph, parts: Iterable[Sequence[Node]]) -> list[tuple[str, ...]]:
    """The values that each part has to hand out: those read by another part, and the graph's outputs."""
    lists = list(parts)
    home = {out: index for index, nodes in enumerate(lists) for node in nodes for out in node.outputs}
    needed: list[dict[str, None]] = [{} for _ in lists]
    for index, nodes in enumerate(lists):
        for node in nodes:
            for name in filter(None, node.inputs):
                if name in home and home[name] != index:
                    needed[home[name]][name] = None
    for name in graph.outputs:
        if name in home:
            needed[home[name]][name] = None
    return [tuple(names) for names in needed]


def without_constants(graph: Graph, constants: Arrays) -> Graph:
    """The graph without the nodes whose outputs are known."""
    return replace(graph, nodes=tuple(node for node in graph.nodes if node.outputs[0] not in constants))
