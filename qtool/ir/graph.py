"""The graph: a frozen, topologically ordered list of operators over named values (SSA: one producer a value)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.ir.types import DType, QParams, Shape, TensorType

Array = NDArray[Any]
Attr = bool | int | float | str | None | tuple["Attr", ...]
Json = bool | int | float | str | None | list["Json"] | dict[str, "Json"]

EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Value:
    """One tensor. Quantized values have ``qparams``, and their ``dtype`` is the storage type."""

    name: str
    dtype: DType
    shape: Shape
    qparams: QParams | None = None

    @property
    def type(self) -> TensorType:
        """The type the operators see: a quantized value stands for float32 numbers, whatever it is stored as."""
        return TensorType(DType.FLOAT32 if self.qparams else self.dtype, self.shape)


@dataclass(frozen=True)
class Node:
    """One operator. ``inputs`` holds value names, ``""`` for an optional input left out.

    ``scope`` is the module path, such as ``layer1.0.conv1``: the keys of ``qconfig_dict`` are matched on it.
    ``graphs`` are the bodies of ``if``, ``loop`` and ``scan``. They are closed: whatever a body reads from outside
    is an input of the node and of the body.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = field(default_factory=lambda: EMPTY)
    scope: str = ""
    graphs: Mapping[str, Graph] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order; ``values`` describes every input, initializer and node output.

    ``backend`` is empty for a float graph and names the int8 arithmetic of a quantized one. A graph whose bodies are
    quantized has it even where it has no int8 layer outside of them; a body that is all float has none.
    ``meta`` is what the file records of where the graph came from (recipe, versions, hashes).
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    initializers: Mapping[str, Array]
    backend: str = ""
    meta: Mapping[str, Json] = field(default_factory=lambda: EMPTY)

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that makes each value; inputs and initializers have none."""
        return {out: node for node in self.nodes for out in node.outputs}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value, once a node, in execution order."""
        found: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.inputs)):
                found[name].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def sole_consumer(self, name: str) -> Node | None:
        """The only reader of a value that is not a graph output; None where there are more or none."""
        readers = self.consumers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def with_outputs(self, outputs: Sequence[str]) -> Graph:
        """The same graph with other outputs, to look at inner values."""
        return replace(self, outputs=tuple(outputs))

    @property
    def is_quantized(self) -> bool:
        return bool(self.backend)

    def parameter_bytes(self) -> int:
        """Those of the bodies included."""
        own = sum(array.nbytes for array in self.initializers.values())
        return own + sum(body.parameter_bytes() for node in self.nodes for body in node.graphs.values())

    def type_of(self, name: str) -> TensorType:
        """What the operators see of a value; with the array of a constant that is not quantized."""
        value = self.values[name]
        return TensorType(value.type.dtype, value.shape, None if value.qparams else self.initializers.get(name))


def remake(
    graph: Graph,
    nodes: Iterable[Node],
    *,
    values: Iterable[Value] = (),
    initializers: Mapping[str, Array] = EMPTY,
    outputs: Sequence[str] | None = None,
) -> Graph:
    """A graph with other nodes: new ``values`` and ``initializers`` are added, those no longer used are dropped."""
    kept_nodes = tuple(nodes)
    kept_outputs = graph.outputs if outputs is None else tuple(outputs)
    known = {**graph.values, **{value.name: value for value in values}}
    arrays = {**graph.initializers, **initializers}
    used = {*graph.inputs, *kept_outputs}
    for node in kept_nodes:
        used.update(filter(None, node.inputs), node.outputs)
    return replace(
        graph,
        nodes=kept_nodes,
        outputs=kept_outputs,
        values={name: value for name, value in known.items() if name in used},
        initializers={name: array for name, array in arrays.items() if name in used},
    )


def rewire(nodes: Iterable[Node], renamed: Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes with inputs renamed; chains of renames are followed."""

    def final(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    return tuple(replace(node, inputs=tuple(final(name) for name in node.inputs)) for node in nodes)


def constant(name: str, array: Array, qparams: QParams | None = None) -> Value:
    """The Value of an initializer."""
    return Value(name, DType.of(np.asarray(array)), tuple(int(n) for n in array.shape), qparams)
