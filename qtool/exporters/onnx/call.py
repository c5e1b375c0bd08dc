"""One operator of the graph as its exporter sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.errors import ModelError
from qtool.exporters.onnx.emitter import Emitter
from qtool.ir import Array, Graph, Node, QParams, Value


class Unsupported(ModelError):  # noqa: N818  # it names what is so, and never reaches the user by itself
    """A node that ONNX, at this opset, cannot express; the export collects them all before it fails."""


@dataclass(frozen=True)
class Call:
    """A node whose inputs are read as float values: quantized ones come through DequantizeLinear.

    Exporters give the names of the node's results, made by ``emit``; the caller quantizes and names them.
    """

    emitter: Emitter
    graph: Graph
    node: Node
    attrs: Any
    read: Callable[[str], str]
    """Value of the graph -> its float name in ONNX."""
    raw: Callable[[str], str]
    """Value of the graph -> its name in ONNX as it is stored."""
    body: Callable[[str, Graph, int, Sequence[str]], Any]
    """Exports a body: its key, the graph, how many inputs are its own, and the ONNX names of the others."""

    @property
    def opset(self) -> int:
        return self.emitter.opset

    @property
    def count(self) -> int:
        return len(self.node.inputs)

    def has(self, position: int) -> bool:
        return position < self.count and bool(self.node.inputs[position])

    def value(self, position: int = 0) -> Value:
        """The graph's record of an input that is there."""
        return self.graph.values[self.node.inputs[position]]

    def x(self, position: int = 0) -> str:
        """An input by its ONNX name; "" where it is left out."""
        return self.read(self.node.inputs[position]) if self.has(position) else ""

    def all_inputs(self) -> list[str]:
        return [self.x(position) for position in range(self.count)]

    def array(self, position: int) -> Array | None:
        """The array of a constant input as stored; None for one that is not constant."""
        return self.graph.initializers.get(self.node.inputs[position]) if self.has(position) else None

    @property
    def out(self) -> Value:
        return self.graph.values[self.node.outputs[0]]

    @property
    def out_qparams(self) -> QParams | None:
        return self.out.qparams

    def emit(self, op: str, *inputs: str, **attrs: Any) -> str:
        """A node with one output."""
        return self.emitter.emit(op, inputs, **attrs)[0]

    def emit_all(self, op: str, inputs: Sequence[str], outputs: int, **attrs: Any) -> tuple[str, ...]:
        return self.emitter.emit(op, inputs, outputs, **attrs)

    def constant(self, array: Array, hint: str) -> str:
        return self.emitter.constant(array, hint)

    def scalar(self, number: float, hint: str) -> str:
        """A number in the element type of the first input."""
        return self.like(np.asarray(number), hint)

    def like(self, array: Array, hint: str) -> str:
        """A constant in the element type of the first input, which is float32 for a quantized one."""
        return self.constant(np.asarray(array, self.value().type.dtype.numpy), hint)

    def ints(self, numbers: Sequence[int], hint: str) -> str:
        return self.constant(np.array(numbers, np.int64), hint)

    def requantized(self, x: str, value: Value) -> str:
        """x rounded to the parameters of ``value``: numbers that are there already stay as they are, and runtimes see
        the pair that they look for around what is to run in int8."""
        if value.qparams is None:
            return x
        quantized = self.emitter.quantize(x, self.raw(value.name), value.qparams)
        return self.emitter.dequantize(quantized, self.raw(value.name), value.qparams)

    def unsupported(self, why: str) -> Unsupported:
        return Unsupported(f"{self.node.op} '{self.node.name}': {why}")


Export = Callable[[Call], "str | Sequence[str]"]


@dataclass(frozen=True)
class Row:
    """How one operator is exported, and the first opset that can hold it; lower ones get an error."""

    export: Export
    since: int = 13
