"""Walks a graph, or the body of a control-flow node, and exports every node by its row of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qtool.errors import ModelError
from qtool.exporters.onnx.call import Call, Row, Unsupported
from qtool.exporters.onnx.emitter import Emitter, Names
from qtool.exporters.onnx.table import TABLE
from qtool.ir import Graph, Node, Value
from qtool.ops import attrs_of


@dataclass
class Exported:
    """A graph in ONNX's terms: what ``model`` makes a GraphProto of. ``types`` describes named values."""

    name: str
    emitter: Emitter
    inputs: list[str]
    outputs: list[str]
    types: Mapping[str, Value]


@dataclass
class Walk:
    """The export of one graph. ``names`` maps its values to ONNX names, ``problems`` collects what has none."""

    graph: Graph
    emitter: Emitter
    names: dict[str, str]
    problems: list[str]
    prefix: str = ""
    _floats: dict[str, str] = field(default_factory=dict)
    """Quantized value -> its dequantized copy."""

    def run(self, inputs: Sequence[str]) -> Exported:
        """``inputs`` are those that stay inputs; a body reads the others by their names around it."""
        graph = self.graph
        for name, array in graph.initializers.items():
            self.emitter.initializer(self.names[name], array)
        for node in graph.nodes:
            row = TABLE.get(node.op)
            if row is not None:
                self._export(node, row)
        self._drop_unread()
        made = [*inputs, *graph.outputs, *(out for node in graph.nodes for out in node.outputs)]
        types = {self.names[name]: graph.values[name] for name in made}
        outputs = [self.names[name] for name in graph.outputs]
        return Exported(graph.name, self.emitter, [self.names[name] for name in inputs], outputs, types)

    def _export(self, node: Node, row: Row) -> None:
        base = self._base(node.outputs[0])
        with self.emitter.origin(node.scope, base):
            call = Call(self.emitter, self.graph, node, attrs_of(node), self._read, self.names.__getitem__, self._body)
            try:
                results = row.export(call)
            except Unsupported as problem:
                self.problems.append(str(problem))
                return
            for name, result in zip(node.outputs, [results] if isinstance(results, str) else results, strict=True):
                self._name_result(node, name, result)

    def _name_result(self, node: Node, name: str, result: str) -> None:
        """Gives a result its name; what the graph holds quantized is quantized behind the float operator."""
        qparams, final = self.graph.values[name].qparams, self.names[name]
        if qparams is not None and node.op != "quantize":
            raw = self.emitter.bind(result, self.emitter.values.take(self._base(name)))
            result = self.emitter.quantize(raw, final, qparams)
        self.emitter.bind(result, final)

    def _read(self, name: str) -> str:
        """The float name of a value; a quantized one is dequantized once, where it is first read."""
        qparams, stored = self.graph.values[name].qparams, self.names[name]
        if qparams is None:
            return stored
        if name not in self._floats:
            result = self.emitter.dequantize(stored, stored, qparams)
            self._floats[name] = self.emitter.bind(result, self.emitter.values.take(f"{self._base(name)}.dq"))
        return self._floats[name]

    def _base(self, name: str) -> str:
        return self.names[name].removesuffix(".q")

    def _body(self, key: str, body: Graph, own: int, captured: Sequence[str]) -> Exported:
        """A body, whose names may not be those of values around it."""
        prefix = f"{self.emitter.base}.{key}"
        names = dict(zip(body.inputs[own:], captured, strict=True))
        for name in body.values:
            if name not in names:
                names[name] = self.emitter.values.take(f"{prefix}.{name}")
        inner = Emitter(self.emitter.opset, self.emitter.values, self.emitter.nodes)
        return Walk(body, inner, names, self.problems, prefix).run(body.inputs[:own])

    def _drop_unread(self) -> None:
        """Initializers that are only there in another form, such as transposed weights, are not written."""
        emitter = self.emitter
        read = {*(self.names[name] for name in self.graph.outputs), *names_read(emitter)}
        emitter.initializers = {name: array for name, array in emitter.initializers.items() if name in read}


def names_read(emitter: Emitter) -> set[str]:
    """Every name that nodes read, those inside of bodies included."""
    read: set[str] = set()
    for item in emitter.items:
        read.update(item.inputs)
        for attr in item.attrs.values():
            if isinstance(attr, Exported):
                read |= names_read(attr.emitter) | set(attr.outputs)
    return read


def walk(graph: Graph, opset: int) -> Exported:
    """The whole graph; ModelError lists every node that ONNX cannot hold."""
    problems = list(_unknown(graph))
    emitter = Emitter(opset, Names(tuple(graph.values)), Names())
    exported = Walk(graph, emitter, {name: name for name in graph.values}, problems).run(graph.inputs)
    if problems:
        listed = "\n  ".join(problems)
        raise ModelError(f"'{graph.name}' cannot be written as ONNX at opset {opset}:\n  {listed}")
    return exported


def needed_opset(graph: Graph) -> int:
    """The lowest opset that holds every operator of the graph."""
    own = (TABLE[node.op].since for node in graph.nodes if node.op in TABLE)
    inner = (needed_opset(body) for node in graph.nodes for body in node.graphs.values())
    return max([0, *own, *inner])


def too_new(graph: Graph, opset: int) -> list[str]:
    """What of the graph an opset does not have."""
    found = [
        f"{node.op} '{node.name}': needs opset {TABLE[node.op].since}"
        for node in graph.nodes
        if node.op in TABLE and TABLE[node.op].since > opset
    ]
    return found + [text for node in graph.nodes for body in node.graphs.values() for text in too_new(body, opset)]


def _unknown(graph: Graph) -> list[str]:
    found = [f"{node.op} '{node.name}': ONNX has no such operator" for node in graph.nodes if node.op not in TABLE]
    return found + [text for node in graph.nodes for body in node.graphs.values() for text in _unknown(body)]
