"""Runs a prepared graph and shows what passes to the observers, in bodies of control flow too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qtool.engine.session import BodySession, Session
from qtool.errors import DataError, QtoolError
from qtool.ir import Array, Node, body_path
from qtool.quantize.bias_correction import ChannelMeans
from qtool.quantize.loops import make_loops
from qtool.quantize.observers import Observer, make_observer
from qtool.quantize.prepare import Prepared


@dataclass(frozen=True)
class Machine:
    """What the float graph runs on, in calibration and in training; ``isa`` None is the best there is."""

    threads: int = 1
    isa: str | None = None


class Observation:
    """The observers of a graph, one a group (None where parameters are fixed), and those of its bodies by path.

    A body is observed each time it runs, each turn of a loop, as the graph around it is for each batch. ``returned``
    names the outputs that a run gives; a body gives all.
    """

    def __init__(
        self, prepared: Prepared, machine: Machine, returned: tuple[str, ...] = (), *, is_body: bool = False
    ) -> None:
        self.prepared = prepared
        self.observers = [make_observer(group.config) if group.fixed is None else None for group in prepared.groups]
        loops = make_loops(machine.threads, machine.isa)
        for observer in filter(None, self.observers):
            observer.loops = loops
        self.means = ChannelMeans(prepared)
        self.bodies = {path: Observation(body, machine, is_body=True) for path, body in prepared.bodies.items()}
        self.runs = 0
        self._by_value = self._observers_by_value()
        self._watched = tuple(dict.fromkeys((*prepared.observed, *self.means.axes)))
        self._turns: dict[int, list[str]] = {}
        for name in prepared.observed:
            self._turns.setdefault(id(self._by_value[name]), []).append(name)
        self._returned = prepared.graph.outputs if is_body else returned
        self._session = self._make_session(machine, BodySession if is_body else Session)

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs once. Gives the outputs that are returned; nothing of what is observed is kept. DataError for NaN or
        infinity, naming the layer."""
        self.runs += 1
        turns = {id(observer): list(self._turns[id(observer)]) for observer in self._by_value.values()}
        kept: dict[str, Array] = {}
        for name in self._watched:
            if name in feeds:
                self._look(name, feeds[name], turns, kept)
        outputs = self._session.watch(feeds, lambda name, x: self._look(name, x, turns, kept))
        return {name: outputs[name] for name in self._returned}

    def _look(self, name: str, x: Array, turns: dict[int, list[str]], kept: dict[str, Array]) -> None:
        """Shows a value to its observer, once it has seen those before it: where several share one, order counts."""
        if name in self.means.axes:
            self.means.observe(name, np.ascontiguousarray(x))
        if name not in self._by_value:
            return
        waiting = turns[id(self._by_value[name])]
        if waiting[0] != name:
            kept[name] = x.copy()
            return
        self._observe(waiting.pop(0), x)
        while waiting and waiting[0] in kept:
            self._observe(waiting[0], kept.pop(waiting.pop(0)))

    def _observers_by_value(self) -> dict[str, Observer]:
        pairs = zip(self.prepared.groups, self.observers, strict=True)
        return {name: observer for group, observer in pairs if observer is not None for name in group.values}

    def _make_session(self, machine: Machine, kind: type[Session]) -> Session:
        """A session that shows the observed values (inputs are at hand already)."""
        graph = self.prepared.graph
        outputs = tuple(dict.fromkeys(self._returned)) or graph.outputs
        watched = [name for name in self._watched if name not in graph.inputs]
        return kind(graph.with_outputs(outputs), machine.threads, machine.isa, run_body=self._run_body, watched=watched)

    def _run_body(self, node: Node, name: str, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return self.bodies[body_path(node.name, name)].run(feeds)

    def _observe(self, name: str, x: Array) -> None:
        if x.size == 0:  # such as what a loop has collected before its first turn
            return
        try:
            self._by_value[name].observe(x)
        except QtoolError as error:
            producer = self.prepared.graph.producers.get(name)
            where = f"the output of {producer.op} '{producer.name}'" if producer else f"the input '{name}'"
            raise DataError(f"calibration of {where}: {error}") from error
