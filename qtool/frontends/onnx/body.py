"""The graph under construction: nodes come in order, constants are evaluated at once, names are given at the end."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qtool.errors import ModelError
from qtool.frontends.onnx.known import Known, Quantized, Unsupported, constant_of
from qtool.frontends.onnx.names import Names, is_parameter_name
from qtool.ir import Array, Attr, Dim, Graph, Node, QParams, Shape, TensorType, Value, constant
from qtool.ops import all_ops, attrs_of, get, infer_node, keeps_parameters

LARGEST_FOLD = 1 << 24
"""Elements of the largest constant that is computed while importing."""
UNFOLDED = frozenset({"if", "loop", "scan", "quantize", "dequantize"})
BACKEND = "fbgemm"
"""Its arithmetic, a float multiplier behind int32 sums, is what ONNX's operators are defined by."""
_TEMPORARY = re.compile(r"@\d+@")


@dataclass
class Origin:
    """The ONNX node that is being converted: what the nodes made for it are called."""

    name: str
    scope: str
    made: list[int] = field(default_factory=list)
    """Positions in ``Body.nodes``."""


class Body:
    """A graph, or the body of a control-flow node, whose ``parent`` then is the body around it."""

    def __init__(self, name: str, parent: Body | None = None) -> None:
        self.name = name
        self.parent = parent
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.inputs: list[str] = []
        self.captured: dict[str, str] = {}
        """Value of the body around -> the input here that it becomes."""
        self._arrays: dict[str, Array] = {}
        self._constants: dict[int, tuple[Known, str]] = {}
        self._wanted: dict[str, str] = {}
        self._names, self._node_names = Names(), Names()
        self._temporaries: Iterator[int] = parent._temporaries if parent else iter(range(1 << 60))
        self._origins: list[Origin] = [Origin("graph", "")]
        self._claimed: set[str] = set()
        self.quantizes = False
        """Whether the graph holds quantized values, so that it needs a backend."""

    # ------------------------------------------------------------------------------------------------- values

    def input(self, name: str, type_: TensorType, qparams: QParams | None = None) -> Known:
        """A graph input under its own name."""
        self._names.reserve(name)
        self.values[name] = Value(name, qparams.dtype if qparams else type_.dtype, type_.shape, qparams)
        self.inputs.append(name)
        return Known(type_, name=name, home=self)

    def name_of(self, known: Known, formal: str = "constant") -> str:
        """The value's name in this graph; made, copied or captured where it is not here yet."""
        if known.array is not None:
            return self._constant_name(known, formal)
        if known.home is None and known.make is not None:
            made = known.make()
            if made.array is not None:
                known.array = made.array
                return self._constant_name(known, formal)
            known.name, known.home, known.type = made.name, made.home, made.type
        if not known.name or known.home is None:
            raise Unsupported("an input is a quantized value used as plain integers")
        return known.name if known.home is self else self._captured_name(known)

    def _constant_name(self, known: Known, formal: str) -> str:
        if id(known) not in self._constants:
            hint = known.hint if is_parameter_name(known.hint) else f"{self._origins[-1].name}.{formal}"
            name, array = self._names.free(hint), known.array
            assert array is not None
            self._arrays[name] = array
            self.values[name] = constant(name, array)
            self._constants[id(known)] = (known, name)
        return self._constants[id(known)][1]

    def _captured_name(self, known: Known) -> str:
        """The input through which a value of a graph further out comes in."""
        if self.parent is None:
            raise ModelError(f"the value '{known.name}' is read outside of the body that makes it")
        outer = self.parent.name_of(known)
        self.capture(outer)
        return self.captured[outer]

    def quantized_constant(self, array: Array, qparams: QParams, hint: str) -> Known:
        """An initializer of integers with parameters; its type is the one the operators see, float32."""
        name = self._names.free(hint)
        self._arrays[name] = array
        self.values[name] = constant(name, array, qparams)
        return Known(self.values[name].type, name=name, home=self)

    def wanted_name(self, name: str) -> str:
        """What a value will be called, as far as that is known."""
        return self._wanted.get(name, name)

    def bind(self, known: Known, name: str) -> None:
        """Calls a value by its name in the ONNX file, the first such name where there are several."""
        if known.quantized is not None:
            known = known.quantized.real
        if known.name and known.home is self:
            self._wanted.setdefault(known.name, name)
        elif known.array is not None and not known.hint:
            known.hint = name

    def _temporary(self) -> str:
        return f"@{next(self._temporaries)}@"

    # -------------------------------------------------------------------------------------------------- nodes

    @contextmanager
    def origin(self, name: str, scope: str) -> Iterator[None]:
        """Nodes made inside are named after this ONNX node; the last of them bears the name itself."""
        origin = Origin(name, scope)
        self._origins.append(origin)
        try:
            yield
        finally:
            self._origins.pop()
            for position in origin.made[::-1]:
                node = self.nodes[position]
                suffix = "" if position == origin.made[-1] else f".{node.op}"
                self.nodes[position] = replace(node, name=self._node_names.free(f"{name}{suffix}"))

    def emit(
        self,
        op: str,
        inputs: Sequence[Known | None],
        attrs: Mapping[str, Attr] | None = None,
        outputs: int = 1,
        graphs: Mapping[str, Graph] | None = None,
    ) -> tuple[Known, ...]:
        """Adds an operator, or evaluates it where all inputs are constants."""
        if op not in all_ops():
            raise Unsupported("the operator is not supported")
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        plain = dict(attrs or {})
        folded = self._folded(op, inputs, plain, outputs)
        if folded is not None:
            return folded
        return self._emit(op, inputs, plain, outputs, graphs or {})

    def _emit(
        self,
        op: str,
        inputs: Sequence[Known | None],
        attrs: Mapping[str, Attr],
        outputs: int,
        graphs: Mapping[str, Graph],
    ) -> tuple[Known, ...]:
        origin = self._origins[-1]
        formals = _formals(op, len(inputs))
        moved = _moved(op, inputs)
        if moved is not None:
            inputs = [known.quantized.real if known is not None and known.quantized else known for known in inputs]
        names = tuple("" if k is None else self.name_of(k, f) for k, f in zip(inputs, formals, strict=True))
        results = tuple(self._temporary() for _ in range(outputs))
        node = Node(op, origin.name, names, results, attrs, origin.scope, graphs)
        types = infer_node(node, [self.type_of(name) if name else None for name in names])
        if len(types) != outputs:
            raise ModelError(f"{op} '{origin.name}': {outputs} outputs, expected {len(types)}")
        origin.made.append(len(self.nodes))
        self.nodes.append(node)
        return tuple(
            self._result(name, type_, moved.qparams if moved else None)
            for name, type_ in zip(results, types, strict=True)
        )

    def _result(self, name: str, type_: TensorType, qparams: QParams | None) -> Known:
        """The output of a node just made; quantized like its input where the node only moves integers."""
        self.values[name] = Value(name, qparams.dtype if qparams else type_.dtype, type_.shape, qparams)
        known = Known(TensorType(type_.dtype, type_.shape), name=name, home=self)
        if qparams is None:
            return known
        return Known(TensorType(qparams.dtype, type_.shape), quantized=Quantized(known, qparams))

    def border(self, op: str, source: Known, qparams: QParams | None) -> Known:
        """A ``quantize`` to these parameters, or a ``dequantize``; the type is the one the operators see, float32."""
        origin, name = self._origins[-1], self._temporary()
        node = Node(op, origin.name, (self.name_of(source),), (name,), {}, origin.scope)
        (type_,) = infer_node(node, [self.values[node.inputs[0]].type])
        self._wanted[name] = _twin(self.wanted_name(node.inputs[0]), op)
        self.values[name] = Value(name, qparams.dtype if qparams else type_.dtype, type_.shape, qparams)
        origin.made.append(len(self.nodes))
        self.nodes.append(node)
        return Known(type_, name=name, home=self)

    def type_of(self, name: str) -> TensorType:
        value = self.values[name]
        array = None if value.qparams else self._arrays.get(name)
        return TensorType(value.type.dtype, value.shape, array)

    def capture(self, outer: str) -> None:
        """Makes a value of the body around an input of this one, if it is not yet."""
        assert self.parent is not None
        if outer not in self.captured:
            name = self._temporary()
            self._wanted[name] = self.parent.wanted_name(outer)
            self.values[name] = replace(self.parent.values[outer], name=name)
            self.captured[outer] = name

    def _folded(
        self, op: str, inputs: Sequence[Known | None], attrs: Mapping[str, Attr], outputs: int
    ) -> tuple[Known, ...] | None:
        """The outputs of a node of constants; None where it has other inputs, or its outputs are large."""
        if op in UNFOLDED or any(known is not None and known.array is None for known in inputs):
            return None
        arrays = [None if known is None else known.array for known in inputs]
        origin = self._origins[-1]
        names = tuple("" if known is None else f"{i}" for i, known in enumerate(inputs))
        node = Node(op, origin.name, names, tuple(f"out{i}" for i in range(outputs)), attrs)
        types = infer_node(node, [None if a is None else _type_of(a) for a in arrays])
        # What is computed from few numbers can still be huge; sizes not even known beforehand come from the input.
        if any(_size(type_.shape) > LARGEST_FOLD for type_ in types):
            return None
        with np.errstate(all="ignore"):
            results = get(op).reference(attrs_of(node), *arrays)
        if any(result.size > LARGEST_FOLD for result in results):
            return None
        return tuple(constant_of(np.asarray(r, t.dtype.numpy)) for r, t in zip(results, types, strict=True))

    # ------------------------------------------------------------------------------------------------- finish

    def finish(self, outputs: Sequence[tuple[str, Known]], captured: Sequence[str] | None = None) -> Graph:
        """The graph; each output gets its ONNX name. ``captured`` lists the values of the graph around that become
        inputs behind the body's own."""
        finals = [self._output(name, known) for name, known in outputs]
        renamed = self._final_names(finals)
        inputs = list(self.inputs)
        for outer in self.captured if captured is None else captured:
            inputs.append(self.captured[outer])
        nodes = [
            replace(
                node,
                inputs=tuple(renamed.get(name, name) for name in node.inputs),
                outputs=tuple(renamed.get(name, name) for name in node.outputs),
            )
            for node in self.nodes
        ]
        return Graph(
            self.name,
            tuple(renamed.get(name, name) for name in inputs),
            tuple(name for name, _ in outputs),
            tuple(nodes),
            {v.name: v for v in (self._renamed(value, renamed) for value in self.values.values())},
            self._arrays,
            BACKEND if self.quantizes else "",
        )

    def _output(self, name: str, known: Known) -> str:
        """The value that becomes an output: one that a node makes and that is no output yet."""
        source = known.quantized.real if known.quantized is not None else known
        made = source.array is None and self.name_of(source) in {o for node in self.nodes for o in node.outputs}
        if not made or source.name in self._claimed:
            with self.origin(f"output.{name}", ""):
                (source,) = self._emit("identity", [source], {}, 1, {})
        self._wanted[source.name] = name
        self._claimed.add(source.name)
        return source.name

    def _final_names(self, finals: Sequence[str]) -> dict[str, str]:
        """Temporary name -> final name. Outputs come first: theirs are fixed."""
        renamed: dict[str, str] = {}
        for temporary in finals:
            self._names.reserve(self._wanted[temporary])
            renamed[temporary] = self._wanted[temporary]
        made_by = {out: node for node in self.nodes for out in node.outputs}
        for name in self.values:
            if _TEMPORARY.fullmatch(name) and name not in renamed:
                node = made_by.get(name)
                fallback = node.name if node else "captured"
                renamed[name] = self._names.free(self._wanted.get(name) or fallback)
        return renamed

    def _renamed(self, value: Value, renamed: Mapping[str, str]) -> Value:
        """The value under its final name, and its unknown sizes named after the final names of values too."""

        def final(dim: Dim) -> Dim:
            if isinstance(dim, int) or "@" not in dim:
                return dim
            return _TEMPORARY.sub(lambda m: renamed.get(m.group(), m.group().strip("@")).replace("*", "_"), dim)

        return replace(value, name=renamed.get(value.name, value.name), shape=tuple(map(final, value.shape)))


def _twin(name: str, op: str) -> str:
    """``v.q`` is the quantized twin of ``v``, and ``v.dq`` the dequantized copy of that."""
    return f"{name}.q" if op == "quantize" else f"{name.removesuffix('.q')}.dq"


def _moved(op: str, inputs: Sequence[Known | None]) -> Quantized | None:
    """The quantized value whose integers the operator only moves, so that its output has the same parameters."""
    first = inputs[0].quantized if inputs and inputs[0] is not None else None
    if first is None or not (keeps_parameters(op) or op == "cat"):
        return None
    if op == "cat" and any(k is None or k.quantized is None or k.quantized.qparams != first.qparams for k in inputs):
        return None
    return first


def _formals(op: str, count: int) -> tuple[str, ...]:
    """Names of the formal inputs of an operator, for ``count`` actual ones."""
    names = [name.rstrip("?*") for name in get(op).inputs]
    return tuple((names + [names[-1] if names else "x"] * count)[:count])


def _type_of(array: Array) -> TensorType:
    return replace(constant_of(array).type, value=array)


def _size(shape: Shape) -> int:
    return math.prod(dim for dim in shape if isinstance(dim, int))


def attr_value(value: Any) -> Attr:
    """An attribute as the graph holds it: lists become tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(attr_value(item) for item in value)
    return value  # type: ignore[no-any-return]
