"""Walks an ONNX graph node by node and builds qtool's."""

from __future__ import annotations

import functools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qtool.errors import ModelError, QtoolError
from qtool.frontends.onnx import symbolic
from qtool.frontends.onnx.body import Body
from qtool.frontends.onnx.call import Call, defaults_of, make_attributes
from qtool.frontends.onnx.known import Known, Skipped, Unsupported, constant_of
from qtool.frontends.onnx.names import scope_of
from qtool.frontends.onnx.table import TABLE
from qtool.frontends.onnx.tensors import dtype_of, read_tensor
from qtool.ir import Dim, DType, Graph, TensorType
from qtool.ir.limits import MAX_GRAPH_DEPTH, MAX_RANK, shown

Scope = MutableMapping[str, "Known | None"]
"""ONNX's value names -> what is known of them; None for what an unsupported node makes."""
BROKEN = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, AssertionError, MemoryError)
"""What NumPy and Python raise on attributes and constants that make no sense."""
BATCH = "N"
MODULES = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Celu",
        "Clip",
        "Conv",
        "ConvTranspose",
        "Dropout",
        "Elu",
        "Flatten",
        "GRU",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "InstanceNormalization",
        "LRN",
        "LSTM",
        "LayerNormalization",
        "LeakyRelu",
        "LogSoftmax",
        "MatMul",
        "MaxPool",
        "Mish",
        "PRelu",
        "RNN",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "Tanh",
    }
)
"""Operators that are a module of their own where the file names modules; others are functions called inside of one."""


@dataclass(frozen=True)
class Problem:
    op: str
    node: str
    reason: str


class Importer:
    """The state of one import. ``problems`` collects the nodes that cannot be expressed, to tell them all at once."""

    def __init__(self, folder: Path, opset: int) -> None:
        self.folder = folder
        self.opset = opset
        self.problems: list[Problem] = []
        self._symbols: dict[str, str] = {}
        self._depth = 0

    def run(self, graph: Any) -> Graph:
        """The whole graph; ModelError lists everything that is not supported."""
        body = Body(graph.name or "model")
        outer: Scope = {}
        scope = self.constants(graph, outer)
        for info in graph.input:
            if info.name not in scope:
                scope[info.name] = self._input(body, info)
        outputs = self.convert(graph, body, scope)
        if self.problems:
            raise ModelError(report(self.problems))
        if not outputs:
            raise ModelError("the model has no outputs")
        return body.finish(outputs)

    def constants(self, graph: Any, scope: Scope) -> Scope:
        """Adds a graph's initializers to a scope."""
        for tensor in graph.initializer:
            try:
                scope[tensor.name] = constant_of(read_tensor(tensor, self.folder), tensor.name)
            except Unsupported as error:
                self.problems.append(Problem("initializer", tensor.name, str(error)))
                scope[tensor.name] = None
        for sparse in graph.sparse_initializer:
            self.problems.append(Problem("initializer", sparse.values.name, "it is a sparse tensor"))
            scope[sparse.values.name] = None
        return scope

    def convert(self, graph: Any, body: Body, scope: Scope) -> list[tuple[str, Known]]:
        """Converts the nodes of a graph into ``body``; the outputs with their names."""
        if self._depth >= MAX_GRAPH_DEPTH:
            raise ModelError(f"its control flow is nested deeper than {MAX_GRAPH_DEPTH} levels")
        self._depth += 1
        for number, node in enumerate(graph.node):
            self._node(node, number, body, scope)
        self._depth -= 1
        outputs = []
        for info in graph.output:
            if info.name not in scope:
                raise ModelError(f"the output {shown(info.name)} is made by no node")
            known = scope[info.name]
            if known is not None:
                outputs.append((info.name, known))
        return outputs

    # -------------------------------------------------------------------------------------------------- inputs

    def _input(self, body: Body, info: Any) -> Known | None:
        try:
            return body.input(info.name, self.input_type(info))
        except Unsupported as error:
            self.problems.append(Problem("input", info.name, str(error)))
            return None

    def input_type(self, info: Any) -> TensorType:
        """The type a ValueInfoProto declares; sizes left open become symbols, the first size of all the batch."""
        if not info.type.HasField("tensor_type"):
            raise Unsupported(
                f"it is a {(info.type.WhichOneof('value') or 'value').removesuffix('_type')}, not a tensor"
            )
        tensor = info.type.tensor_type
        dtype = dtype_of(tensor.elem_type, "it")
        if not tensor.HasField("shape"):
            raise Unsupported("its rank is not given")
        if len(tensor.shape.dim) > MAX_RANK:
            raise ModelError(f"input {shown(info.name)} has {len(tensor.shape.dim)} axes; at most {MAX_RANK} are read")
        return TensorType(dtype, tuple(self._dim(d, info.name, axis) for axis, d in enumerate(tensor.shape.dim)))

    def _dim(self, dim: Any, name: str, axis: int) -> Dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            return int(dim.dim_value)
        text = dim.dim_param or f"{name}.{axis}"
        if text not in self._symbols:
            plain = "".join(c if c.isalnum() or c in "._" else "_" for c in text)[:64]
            batch = axis == 0 and BATCH not in self._symbols.values()
            symbol = BATCH if batch else plain if plain[:1].isalpha() else f"d_{plain}"
            while not batch and (symbol == BATCH or symbol in self._symbols.values()):
                symbol += "_"
            self._symbols[text] = symbol
        return self._symbols[text]

    # --------------------------------------------------------------------------------------------------- nodes

    def _node(self, node: Any, number: int, body: Body, scope: Scope) -> None:
        """Converts one node; what is not supported is noted and its outputs are unknown."""
        name = node.name or next(filter(None, node.output), "") or f"{node.op_type}_{number}"
        try:
            results = self._results(node, name, body, scope)
        except Unsupported as error:
            self.problems.append(Problem(node.op_type, name, str(error)))
            results = [None] * len(node.output)
        except Skipped:
            results = [None] * len(node.output)
        except QtoolError as error:
            if node.op_type in ("If", "Loop", "Scan"):
                raise
            raise ModelError(f"{node.op_type} {shown(name)}: {error}") from error
        except BROKEN as error:
            raise ModelError(f"{node.op_type} {shown(name)} is broken: {type(error).__name__}: {error}") from error
        for output, known in zip(node.output, results, strict=False):
            if output:
                scope[output] = known
                if known is not None:
                    body.bind(known, output)

    def _results(self, node: Any, name: str, body: Body, scope: Scope) -> Sequence[Known | None]:
        key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if key not in TABLE:
            raise Unsupported("the operator is not supported")
        inputs = [self._resolve(name, scope) if name else None for name in node.input]
        if any(known is None and text for known, text in zip(inputs, node.input, strict=True)):
            return [None] * len(node.output)
        defaults = defaults_of(node.op_type, self.opset, "")
        attrs = {**defaults, **make_attributes(node, self.folder)}
        parameters = [known.hint for known in inputs if known is not None and known.hint]
        module = scope_of(node, parameters)
        base = _base_name(node, module, name)
        call = Call(key, self.opset, base, tuple(inputs), tuple(node.output), attrs, defaults, body, self, scope)
        with body.origin(base, module):
            folded = self._symbolic(call, module)
            if folded is not None:
                return [folded]
            results = TABLE[key](call)
        return [results] if isinstance(results, Known) else list(results)

    def _resolve(self, name: str, scope: Mapping[str, Known | None]) -> Known | None:
        if name not in scope:
            raise ModelError(f"it reads {shown(name)}, which no node makes before it")
        return scope[name]

    def _symbolic(self, call: Call, module: str) -> Known | None:
        """The value of a node that only computes with sizes."""
        try:
            result, dtype = _evaluate(call)
        except symbolic.NotSymbolic:
            return None
        if symbolic.is_plain(result):
            return constant_of(result.astype(dtype.numpy))
        known = Known(TensorType(dtype, result.shape), symbols=result)
        known.make = functools.partial(_convert, call, module)
        return known


def _convert(call: Call, module: str) -> Known:
    """The node itself, for a reader that needs its value in the graph."""
    with call.body.origin(call.name, module):
        made = TABLE[call.op](call)
    assert isinstance(made, Known)
    return made


def _evaluate(call: Call) -> tuple[Any, DType]:
    if call.op in ("Shape", "Size"):
        x = call.x()
        shape = x.shape
        if call.op == "Size":
            return symbolic.EVALUATORS["ReduceProd"]({"keepdims": 0}, symbolic.of_shape(shape)), DType.INT64
        return symbolic.of_shape(shape[slice(call.attr("start", 0), call.attr("end"))]), DType.INT64
    known = [k for k in call.inputs if k is not None]
    if len(known) != len(call.inputs) or all(k.symbols is None for k in known):
        raise symbolic.NotSymbolic
    if any(k.symbols is None and (k.array is None or k.array.size > symbolic.LARGEST) for k in known):
        raise symbolic.NotSymbolic
    arrays = [k.symbols if k.symbols is not None else np.asarray(k.array).astype(object) for k in known]
    return symbolic.evaluate(call.op, call.attrs, arrays), _dtype(call, known)


def _dtype(call: Call, known: Sequence[Known]) -> DType:
    if call.op == "Cast":
        return dtype_of(call.attrs["to"], "its output")
    if call.op == "Equal":
        return DType.BOOL
    return known[1 if call.op == "Where" else 0].dtype


def _base_name(node: Any, module: str, name: str) -> str:
    """What the node is called: its module where it is one, else module and operator, else as in the file."""
    if not module:
        return name
    return module if node.op_type in MODULES or "/" not in node.name else f"{module}.{node.op_type.lower()}"


def report(problems: Sequence[Problem]) -> str:
    """One message for all nodes that are not supported."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        groups.setdefault((problem.op, problem.reason), []).append(problem.node)
    lines = [
        f"  {op} x{len(nodes)}: {reason} ({', '.join(map(shown, nodes[:3]))}{', ...' if len(nodes) > 3 else ''})"
        for (op, reason), nodes in groups.items()
    ]
    return "\n".join(
        [
            f"{len(problems)} parts of the model are not supported:",
            *lines,
            "Export the model again with another opset or without these operators, or cut them off with "
            "onnx.utils.extract_model and run them outside.",
        ]
    )
