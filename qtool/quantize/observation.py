"""Runs a prepared graph and shows what passes to the observers, in bodies of control flow too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qtool.engine.session import BodySession, Session
from qtool.errors import DataError, QtoolError
from qtool.ir import Array, Node, body_path
from qtool.quantize.bias_correction import ChannelMeans
from qtool.quantize.observers import Observer, make_observer
from qtool.quantize.prepare import Prepared


@dataclass(frozen=True)
class Machine:
    """What the float graph runs on."""

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
        self.means = ChannelMeans(prepared)
        self.bodies = {path: Observation(body, machine, is_body=True) for path, body in prepared.bodies.items()}
        self.runs = 0
        self._by_value = self._observers_by_value()
        self._returned = prepared.graph.outputs if is_body else returned
        self._session = self._make_session(machine, BodySession if is_body else Session)

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs once. Gives the outputs that are returned; what is observed is let go of at once. DataError for NaN or
        infinity, naming the layer."""
        self.runs += 1
        outputs = self._session.run(feeds)
        returned = {name: outputs[name] for name in self._returned}
        for name in self.means.axes:
            self.means.observe(name, feeds[name] if name in feeds else outputs[name])
        for name in self.prepared.observed:
            self._observe(name, feeds[name] if name in feeds else outputs.pop(name))
        return returned

    def _observers_by_value(self) -> dict[str, Observer]:
        pairs = zip(self.prepared.groups, self.observers, strict=True)
        return {name: observer for group, observer in pairs if observer is not None for name in group.values}

    def _make_session(self, machine: Machine, kind: type[Session]) -> Session:
        """A session that gives the observed values (inputs are at hand already)."""
        graph = self.prepared.graph
        wanted = dict.fromkeys((*self.prepared.observed, *self.means.axes))
        computed = [name for name in wanted if name not in graph.inputs]
        outputs = tuple(dict.fromkeys([*computed, *self._returned])) or graph.outputs
        return kind(graph.with_outputs(outputs), machine.threads, machine.isa, run_body=self._run_body)

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
