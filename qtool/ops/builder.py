"""Builds graphs node by node with shapes inferred on the way; used by the zoo, the frontends and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from qtool.ir import EMPTY, Array, Attr, DType, Graph, Node, QParams, Shape, TensorType, Value, constant
from qtool.ops.registry import infer_node


class Builder:
    """Collects nodes in execution order.

    Example::

        b = Builder("tiny")
        x = b.input("x", ("N", 4))
        with b.scope("fc"):
            y = b.node("linear", [x, b.param("weight", w), b.param("bias", c)])
        graph = b.finish([y])
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._inputs: list[str] = []
        self._nodes: list[Node] = []
        self._values: dict[str, Value] = {}
        self._initializers: dict[str, Array] = {}
        self._scope: list[str] = []

    @contextmanager
    def scope(self, part: str) -> Iterator[None]:
        """Everything made inside belongs to the module ``part`` of the current module."""
        self._scope.append(part)
        try:
            yield
        finally:
            self._scope.pop()

    @property
    def path(self) -> str:
        return ".".join(self._scope)

    def input(self, name: str, shape: Shape, dtype: DType = DType.FLOAT32) -> str:
        self._add_value(Value(name, dtype, shape))
        self._inputs.append(name)
        return name

    def param(self, name: str, array: Array, qparams: QParams | None = None) -> str:
        """An initializer named ``<module path>.<name>``, as a state dict names it."""
        full = f"{self.path}.{name}" if self.path else name
        array = np.asarray(array, order="C")  # ascontiguousarray would make a vector of a scalar
        self._add_value(constant(full, array, qparams))
        self._initializers[full] = array
        return full

    def node(
        self, op: str, inputs: Sequence[str], name: str = "", qparams: QParams | None = None, **attrs: Attr
    ) -> str:
        """Adds an operator with one output and gives the output's name.

        The node is called ``<module path>``, or ``<module path>.<name>``, with a number where that is taken.
        """
        return self.nodes(op, inputs, 1, name, qparams, EMPTY, **attrs)[0]

    def nodes(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: int,
        /,
        name: str = "",
        qparams: QParams | None = None,
        graphs: Mapping[str, Graph] = EMPTY,
        **attrs: Attr,
    ) -> tuple[str, ...]:
        """As ``node``, for an operator with several outputs, or with bodies."""
        full = self._free_name(".".join(filter(None, (self.path, name or ("" if self.path else op)))), outputs > 1)
        names = tuple(full if outputs == 1 else f"{full}.{i}" for i in range(outputs))
        node = Node(op, full, tuple(inputs), names, attrs, self.path, graphs)
        types = infer_node(node, [self.type_of(i) if i else None for i in inputs])
        for out, inferred in zip(names, types, strict=True):
            self._add_value(Value(out, qparams.dtype if qparams else inferred.dtype, inferred.shape, qparams))
        self._nodes.append(node)
        return names

    def value(self, name: str) -> Value:
        return self._values[name]

    def type_of(self, name: str) -> TensorType:
        """What the operators see of a value; with the array of a constant that is not quantized."""
        value = self._values[name]
        return TensorType(value.type.dtype, value.shape, None if value.qparams else self._initializers.get(name))

    def finish(self, outputs: Sequence[str], backend: str = "") -> Graph:
        return Graph(
            self._name,
            tuple(self._inputs),
            tuple(outputs),
            tuple(self._nodes),
            self._values,
            self._initializers,
            backend,
        )

    def _free_name(self, name: str, several: bool) -> str:
        free, number = name, 1
        while free in self._values or (several and f"{free}.0" in self._values):
            free, number = f"{name}_{number}", number + 1
        return free

    def _add_value(self, value: Value) -> None:
        assert value.name not in self._values, f"value {value.name} is made twice"
        self._values[value.name] = value
