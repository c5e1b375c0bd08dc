"""A graph as JSON and back, schema ``qtool.graph/1``. The arrays themselves are no part of it.

Scales and zero points of per-channel parameters go to two tables shared by the whole graph, and the JSON holds
``[start, count]``: an array member for each of them would cost more than what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qtool.errors import ModelError
from qtool.ir.graph import Array, Attr, Graph, Json, Node, Value
from qtool.ir.limits import (
    INT64,
    MAX_ATTR_DEPTH,
    MAX_BODIES,
    MAX_CHANNELS,
    MAX_GRAPH_DEPTH,
    MAX_META_DEPTH,
    MAX_NODES,
    MAX_VALUES,
    shown,
)
from qtool.ir.types import Dim, DType, QParams
from qtool.ir.verify import ARITHMETICS

SCHEMA = "qtool.graph/1"
SCHEMA_WITH_BODIES = "qtool.graph/2"
"""Of a graph with control flow: nodes have an entry "graphs". A graph without is written as before."""

_T = TypeVar("_T")
_Object = dict[str, Json]


@dataclass(frozen=True)
class Tables:
    """The per-channel scales (float32) and zero points (int32) of a graph, one after another."""

    scales: NDArray[np.float32]
    zero_points: NDArray[np.int32]


# ---------------------------------------------------------------------------------------------------- graph -> JSON


def encode(graph: Graph, writer: str) -> tuple[Json, Tables]:
    """The JSON of a verified graph and the tables it refers to. ``writer`` names the program and its version."""
    pools = _Pools(_Pool(np.dtype(np.float32)), _Pool(np.dtype(np.int32)))
    has_bodies = any(node.graphs for node in graph.nodes)
    document: _Object = {
        "schema": SCHEMA_WITH_BODIES if has_bodies else SCHEMA,
        "writer": writer,
        **_encode_head(graph),
        "meta": _plain_meta(graph.meta, "meta", MAX_META_DEPTH),
        **_encode_content(graph, pools),
    }
    return document, Tables(pools.scales.joined(), pools.zero_points.joined())


def bodies_of(graph: Graph) -> list[Graph]:
    """The bodies of control flow, those within bodies too, in the order in which the JSON has them."""
    found: list[Graph] = []
    for node in graph.nodes:
        for body in node.graphs.values():
            found += [body, *bodies_of(body)]
    return found


def _encode_head(graph: Graph) -> _Object:
    return {
        "name": graph.name,
        "backend": graph.backend,
        "arithmetic": ARITHMETICS[graph.backend],
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
    }


def _encode_content(graph: Graph, pools: _Pools) -> _Object:
    return {
        "values": {value.name: _encode_value(value, pools) for value in graph.values.values()},
        "nodes": [_encode_node(node, pools) for node in graph.nodes],
    }


class _Pool:
    """Collects short arrays into one; equal ones are stored once."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._places: dict[bytes, int] = {}
        self._size = 0

    def place(self, array: Array) -> Json:
        """``[start, count]`` of the array in the table."""
        octets = np.ascontiguousarray(array, self._dtype).tobytes()
        if octets not in self._places:
            self._places[octets] = self._size
            self._size += array.size
        return [self._places[octets], array.size]

    def joined(self) -> NDArray[Any]:
        return np.frombuffer(b"".join(self._places), self._dtype)


@dataclass(frozen=True)
class _Pools:
    scales: _Pool
    zero_points: _Pool


def _encode_value(value: Value, pools: _Pools) -> Json:
    encoded: _Object = {"dtype": value.dtype.value, "shape": list(value.shape)}
    qparams = value.qparams
    if qparams is None:
        return encoded
    first = int(qparams.zero_point[0]) if qparams.zero_point.size else 0
    if qparams.axis is None:
        return {**encoded, "scale": short_float32(qparams.scale[0]), "zero_point": first}
    constant = bool((qparams.zero_point == first).all())
    return {
        **encoded,
        "axis": qparams.axis,
        "scale": pools.scales.place(qparams.scale),
        "zero_point": first if constant else pools.zero_points.place(qparams.zero_point),
    }


def short_float32(number: np.float32) -> float:
    """The float64 with the fewest digits that rounds to this float32: 0.1 instead of 0.10000000149011612."""
    short = float(str(number))
    return short if np.float32(short) == number else float(number)


def _encode_node(node: Node, pools: _Pools) -> Json:
    encoded: _Object = {
        "op": node.op,
        "name": node.name,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
    }
    if node.attrs:
        encoded["attrs"] = {name: _encode_attr(attr) for name, attr in node.attrs.items()}
    if node.scope:
        encoded["scope"] = node.scope
    if node.graphs:
        bodies = node.graphs.items()
        encoded["graphs"] = {name: {**_encode_head(body), **_encode_content(body, pools)} for name, body in bodies}
    return encoded


def _encode_attr(attr: Attr) -> Json:
    if isinstance(attr, tuple):
        return [_encode_attr(item) for item in attr]
    if isinstance(attr, float):
        return float(attr) if math.isfinite(attr) else {"float": str(float(attr))}
    return attr


def _plain_meta(value: object, where: str, depth: int) -> Json:
    """Mappings as dict and sequences as list, so that what is loaded equals what was saved."""
    if depth == 0:
        raise ModelError(f"{where} is nested deeper than {MAX_META_DEPTH} levels")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ModelError(f"{where} has a key that is no text; expected only texts")
        return {key: _plain_meta(item, f"{where}.{key}"[:200], depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_meta(item, where, depth - 1) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int) and value in INT64:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise ModelError(f"{where} holds {shown(value)}; expected finite numbers, texts, bools, None, lists and mappings")


# ---------------------------------------------------------------------------------------------------- JSON -> graph


def decode(document: Json, arrays: Sequence[Mapping[str, Array]], tables: Tables) -> Graph:
    """The graph of a JSON document; ModelError where its form is wrong. The graph is not verified yet.

    ``arrays`` holds the initializers of the graph and of each of its bodies, in the order of ``bodies_of``.
    """
    root = _Reader(document, "the graph")
    schema = root.take("schema", str)
    if schema not in (SCHEMA, SCHEMA_WITH_BODIES):
        expected = f"{SCHEMA} and {SCHEMA_WITH_BODIES}"
        raise ModelError(f"its schema is {shown(schema)}; this version of qtool reads {expected}")
    root.take("writer", str)
    meta = _meta(root.take("meta", dict))
    decoder = _Decoder(arrays, tables, MAX_GRAPH_DEPTH if schema == SCHEMA_WITH_BODIES else 0)
    graph = decoder.graph(root, decoder.depth)
    if decoder.begun < len(arrays):
        raise ModelError(f"it has arrays of {len(arrays) - 1} bodies; the graph has {decoder.begun - 1}")
    return replace(graph, meta=MappingProxyType(meta))


class _Decoder:
    """Reads graphs within graphs; counts what must be bounded for all of them together."""

    def __init__(self, arrays: Sequence[Mapping[str, Array]], tables: Tables, depth: int) -> None:
        self.depth = depth
        self.begun = 0
        self._arrays = arrays
        self._tables = tables
        self._counts = {"nodes": 0, "values": 0, "quantization parameters": 0}

    def graph(self, root: _Reader, depth: int) -> Graph:
        backend = root.take("backend", str)
        arithmetic = root.take("arithmetic", str)
        if ARITHMETICS.get(backend) != arithmetic:
            raise ModelError(
                f"backend {shown(backend)} with arithmetic {shown(arithmetic)} is not known to this version of qtool"
            )
        values, nodes = root.take("values", dict), root.take("nodes", list)
        self._count("nodes", len(nodes), MAX_NODES)
        self._count("values", len(values), MAX_VALUES)
        arrays = self._own_arrays()
        graph = Graph(
            name=root.take("name", str),
            inputs=root.texts("inputs"),
            outputs=root.texts("outputs"),
            nodes=tuple(self._node(node, f"node {i}", depth) for i, node in enumerate(nodes)),
            values=self._values(values),
            initializers=MappingProxyType(dict(arrays)),
            backend=backend,
        )
        root.finish()
        return graph

    def _own_arrays(self) -> Mapping[str, Array]:
        number = self.begun
        self.begun += 1
        if self.begun > MAX_BODIES:
            raise ModelError(f"it has more than {MAX_BODIES} bodies of control flow")
        return self._arrays[number] if number < len(self._arrays) else {}

    def _count(self, what: str, more: int, most: int) -> None:
        self._counts[what] += more
        if self._counts[what] > most:
            raise ModelError(f"it has {self._counts[what]} {what}; at most {most} are read")

    def _values(self, encoded: _Object) -> Mapping[str, Value]:
        decoded = {}
        for name, value in encoded.items():
            decoded[name] = made = _decode_value(name, value, self._tables)
            # A constant zero point is short in the file and long in memory, so the bound is held on the way.
            self._count("quantization parameters", made.qparams.scale.size if made.qparams else 0, MAX_CHANNELS)
        return MappingProxyType(decoded)

    def _node(self, encoded: Json, where: str, depth: int) -> Node:
        reader = _Reader(encoded, where)
        bodies = reader.take("graphs", dict) if self.depth and reader.has("graphs") else {}
        node = _decode_node(reader, where)
        if bodies and depth == 0:
            raise ModelError(f"{where} has bodies nested deeper than {MAX_GRAPH_DEPTH} levels")
        graphs = {
            name: self.graph(_Reader(body, f"{where}, body {shown(name)},"), depth - 1) for name, body in bodies.items()
        }
        return replace(node, graphs=MappingProxyType(graphs)) if graphs else node


class _Reader:
    """Takes the entries of a JSON object one by one, each of a known type; what is left over is an error."""

    def __init__(self, value: Json, where: str) -> None:
        if not isinstance(value, dict):
            raise ModelError(f"{where} is {shown(value)}; expected an object")
        self._left = dict(value)
        self._where = where

    def has(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, kind: type[_T]) -> _T:
        if key not in self._left:
            raise ModelError(f"{self._where} has no {key!r}")
        value = self._left.pop(key)
        if type(value) is not kind:
            raise ModelError(f"{self._where}: {key!r} is {shown(value)}; expected {_KINDS[kind]}")
        return value

    def any(self, key: str) -> Json:
        if key not in self._left:
            raise ModelError(f"{self._where} has no {key!r}")
        return self._left.pop(key)

    def texts(self, key: str) -> tuple[str, ...]:
        items = self.take(key, list)
        for item in items:
            if not isinstance(item, str):
                raise ModelError(f"{self._where}: {key!r} holds {shown(item)}; expected texts")
        return tuple(items)

    def finish(self) -> None:
        if self._left:
            raise ModelError(f"{self._where} has an unknown entry {shown(next(iter(self._left)))}")


_KINDS: Mapping[type, str] = {str: "text", int: "an integer", dict: "an object", list: "a list"}


def _decode_value(name: str, encoded: Json, tables: Tables) -> Value:
    where = f"value {shown(name)}"
    reader = _Reader(encoded, where)
    dtype_name = reader.take("dtype", str)
    try:
        dtype = DType(dtype_name)
    except ValueError:
        raise ModelError(f"{where} has element type {shown(dtype_name)}, which is not supported") from None
    shape = tuple(_decode_size(size, where) for size in reader.take("shape", list))
    qparams = _decode_qparams(reader, dtype, where, tables) if reader.has("scale") else None
    reader.finish()
    return Value(name, dtype, shape, qparams)


def _decode_size(size: Json, where: str) -> Dim:
    if type(size) is int or isinstance(size, str):
        return size
    raise ModelError(f"{where} has a size {shown(size)}; expected an integer or a symbol")


def _decode_qparams(reader: _Reader, dtype: DType, where: str, tables: Tables) -> QParams:
    axis = reader.take("axis", int) if reader.has("axis") else None
    scale_text, zero_text = reader.any("scale"), reader.any("zero_point")
    if axis is None:
        if type(scale_text) not in (int, float):
            raise ModelError(f"{where} has scale {shown(scale_text)}; expected one number, as it has no axis")
        scale = np.array([_float32(float(scale_text), where)], np.float32)  # type: ignore[arg-type]
    else:
        scale = _slice(scale_text, tables.scales, f"{where}: its scale")
    if type(zero_text) is int:
        if zero_text not in range(-(1 << 31), 1 << 31):
            raise ModelError(f"{where} has zero_point {zero_text}, which does not fit 32 bits")
        zero_point = np.full(scale.shape, zero_text, np.int32)
    else:
        zero_point = _slice(zero_text, tables.zero_points, f"{where}: its zero_point")
    return QParams(scale, zero_point, dtype, axis)


def _float32(number: float, where: str) -> float:
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise ModelError(f"{where} has scale {number}, which does not fit float32")
    return number


def _slice(place: Json, table: NDArray[Any], where: str) -> NDArray[Any]:
    match place:
        case [int(start), int(count)] if start >= 0 and 0 < count <= table.size - start:
            return table[start : start + count]
    raise ModelError(f"{where} is {shown(place)}; expected [start, count] within a table of {table.size}")


def _decode_node(reader: _Reader, where: str) -> Node:
    name = reader.take("name", str)
    attrs = reader.take("attrs", dict) if reader.has("attrs") else {}
    node = Node(
        op=reader.take("op", str),
        name=name,
        inputs=reader.texts("inputs"),
        outputs=reader.texts("outputs"),
        attrs=MappingProxyType({key: _decode_attr(attr, where, MAX_ATTR_DEPTH) for key, attr in attrs.items()}),
        scope=reader.take("scope", str) if reader.has("scope") else "",
    )
    reader.finish()
    return node


def _decode_attr(encoded: Json, where: str, depth: int) -> Attr:
    if isinstance(encoded, list):
        if depth == 0:
            raise ModelError(f"{where} has an attribute nested deeper than {MAX_ATTR_DEPTH} levels")
        return tuple(_decode_attr(item, where, depth - 1) for item in encoded)
    if isinstance(encoded, dict):
        number = encoded.get("float")
        if len(encoded) != 1 or number not in ("inf", "-inf", "nan"):
            raise ModelError(f"{where} has an attribute {shown(encoded)}; expected a number, text, bool, null or list")
        return float(str(number))
    return encoded


def _meta(encoded: _Object) -> _Object:
    checked = _plain_meta(encoded, "meta", MAX_META_DEPTH)
    assert isinstance(checked, dict)
    return checked
