"""The parts that a graph is run in: native programs, and what the reference runs between them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from qtool.engine import reference
from qtool.engine.control import RunBody
from qtool.engine.lowering import Binding, Role, Segment, Source, lower, make_groups
from qtool.engine.memory import Life, place
from qtool.errors import DataError, EngineError
from qtool.ir import Array, Graph, Node
from qtool.native import Buffer, Op, Plan

Arrays = Mapping[str, Array]
T = TypeVar("T")


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
        self, graph: Graph, constants: Arrays, nodes: Sequence[Node], outputs: Sequence[str], bodies: Bodies
    ) -> None:
        made = {out for node in nodes for out in node.outputs}
        read = dict.fromkeys(name for node in nodes for name in node.inputs if name)
        self._graph = graph
        self._constants = constants
        self._nodes = tuple(nodes)
        self._bodies = bodies
        self.inputs = tuple(name for name in read if name not in made and name not in constants)
        self.outputs = tuple(outputs)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        known = self._known(arrays)
        for node in self._nodes:
            self._run_node(node, known, self._bodies.run)
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


class NativePart:
    """Nodes that run in one native call."""

    def __init__(self, source: Source, nodes: Sequence[Node], outputs: Sequence[str], machine: Machine) -> None:
        segment = Segment(source)
        for group in make_groups(source, nodes, outputs):
            lower(segment, group)
        for name in outputs:
            segment.node = name
            segment.leave(name)
        self._nodes = [step.node for step in segment.steps]
        self._bindings = [segment.bindings[buffer] for buffer in sorted(segment.bindings)]
        self._shapes = {name: (source.shapes[name], source.value(name).dtype.numpy) for name in outputs}
        self._plan = _make_plan(segment, machine)
        self.inputs = tuple(binding.name for binding in self._bindings if binding.role is Role.INPUT)
        self.outputs = tuple(outputs)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        results = self._empty()
        self._call(self._plan.run, arrays, results)
        return results

    def profile(self, arrays: Arrays) -> tuple[dict[str, Array], list[Timing]]:
        results = self._empty()
        seconds = self._call(self._plan.profile, arrays, results)
        return results, list(map(Timing, self._nodes, self._plan.kernels, seconds))

    @property
    def bytes(self) -> int:
        return self._plan.bytes

    def _call(self, call: Callable[..., T], arrays: Arrays, results: Arrays) -> T:
        """Runs the plan; DataError, as of the reference, for what an operator has to say of its data."""
        try:
            return call(*self._bound(arrays, results))
        except EngineError as error:
            found = re.fullmatch(r"operator (\d+): (.*)", str(error))
            if found is None:
                raise
            raise DataError(f"'{self._nodes[int(found[1])]}': {found[2]}") from None

    def _empty(self) -> dict[str, Array]:
        return {name: np.empty(shape, dtype) for name, (shape, dtype) in self._shapes.items()}

    def _bound(self, arrays: Arrays, results: Arrays) -> list[Array]:
        return [_array_of(binding, arrays, results) for binding in self._bindings]


def _array_of(binding: Binding, arrays: Arrays, results: Arrays) -> Array:
    if binding.array is not None:
        return binding.array
    if binding.role is Role.OUTPUT:
        return results[binding.name]
    array = arrays[binding.name]
    return array if array.flags.c_contiguous else array.copy(order="C")


def _make_plan(segment: Segment, machine: Machine) -> Plan:
    """The native plan of a segment: arena buffers placed by when they live, some of them one on another."""
    homes = _share(segment)
    arena = sorted({homes[buffer] for buffer in range(len(segment.sizes)) if buffer not in segment.bindings})
    lives = _lives(segment, homes)
    offsets, size = place([lives[buffer] for buffer in arena])
    offset_of = dict(zip(arena, offsets, strict=True))
    buffers = [
        Buffer(bytes_, None if buffer in segment.bindings else offset_of[homes[buffer]])
        for buffer, bytes_ in enumerate(segment.sizes)
    ]
    ops = [Op(step.kind, step.inputs, step.output, step.args) for step in segment.steps]
    return Plan(ops, buffers, size, isa=machine.isa, threads=machine.threads)


def _share(segment: Segment) -> list[int]:
    """The buffer in whose place each one lies: the result of a step that may work in place takes that of its first
    input where nobody reads that any more."""
    last_read = {buffer: index for index, step in enumerate(segment.steps) for buffer in step.inputs}
    homes = list(range(len(segment.sizes)))
    for index, step in enumerate(segment.steps):
        source, target = step.inputs[0], step.output
        if source == target or {source, target} & segment.bindings.keys() or not step.in_place:
            continue
        if last_read[source] == index and segment.sizes[source] == segment.sizes[target] and homes[target] == target:
            homes[target] = homes[source]
    return homes


def _lives(segment: Segment, homes: Sequence[int]) -> dict[int, Life]:
    """From the first step that writes a home's bytes to the last one that touches them."""
    touched: dict[int, list[int]] = {home: [] for home in homes}
    for index, step in enumerate(segment.steps):
        for buffer in (*step.inputs, step.output):
            touched[homes[buffer]].append(index)
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
