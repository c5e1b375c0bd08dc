"""The structural rules that every graph keeps. ``verify`` runs after every pass and on every file that is loaded.

They need no operator: shapes and dtypes against the operators' own rules are checked in ``qtool.ops``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from qtool.errors import ModelError
from qtool.ir.graph import Attr, Graph, Node, Value
from qtool.ir.limits import (
    INT64,
    MAX_ATTR_DEPTH,
    MAX_BODIES,
    MAX_CHANNELS,
    MAX_ELEMENTS,
    MAX_GRAPH_DEPTH,
    MAX_INITIALIZERS,
    MAX_NAME,
    MAX_NODES,
    MAX_RANK,
    MAX_TEXT,
    MAX_VALUES,
    shown,
)
from qtool.ir.types import DType, QParams

ARITHMETICS = {
    "": "",
    "fbgemm": "float-bias",
    "x86": "float-bias",
    "onednn": "float-bias",
    "qnnpack": "int32-bias",
}
"""Backend: how its accumulators are turned into the output (bias added as float32, or as int32 before scaling)."""


def verify(graph: Graph) -> None:
    """Raises ModelError that names the node or value for the first rule of ``RULES`` that is broken."""
    for rule in RULES:
        rule(graph)


def _bodies_are_bounded(graph: Graph) -> None:
    """In depth and number, level by level; so the rules may recur into bodies."""
    level, bodies = [graph], 0
    for _ in range(MAX_GRAPH_DEPTH + 1):
        level = [body for one in level for node in one.nodes for body in node.graphs.values()]
        bodies += len(level)
        if bodies > MAX_BODIES:
            raise ModelError(f"the graph has more than {MAX_BODIES} bodies of control flow")
        for body in level:
            if body.meta:
                raise ModelError(
                    f"the body {shown(body.name)} has meta data; expected them on the outermost graph only"
                )
    if level:
        raise ModelError(f"the bodies of control flow are nested deeper than {MAX_GRAPH_DEPTH} levels")


def _all_graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.nodes:
        for body in node.graphs.values():
            yield from _all_graphs(body)


def _sizes_are_sane(graph: Graph) -> None:
    graphs = list(_all_graphs(graph))
    counts = (
        ("nodes", sum(len(one.nodes) for one in graphs), MAX_NODES),
        ("values", sum(len(one.values) for one in graphs), MAX_VALUES),
        ("initializers", sum(len(one.initializers) for one in graphs), MAX_INITIALIZERS),
    )
    for what, count, most in counts:
        if count > most:
            raise ModelError(f"the graph has {count} {what}; at most {most} are supported")
    if graph.backend not in ARITHMETICS:
        names = ", ".join(filter(None, ARITHMETICS))
        raise ModelError(f"backend {shown(graph.backend)} is not known; expected one of {names}, or none")


def _names_are_sane(graph: Graph) -> None:
    _check_name(graph.name, "the graph's name", empty=True)
    for name, value in graph.values.items():
        _check_name(name, "a value's name")
        if name != value.name:
            raise ModelError(f"value {shown(name)} is filed under another name than its own, {shown(value.name)}")
    for node in graph.nodes:
        _check_name(node.name, "a node's name")
        _check_name(node.op, f"the operator of node {shown(node.name)}")
        _check_name(node.scope, f"the scope of node {shown(node.name)}", empty=True)
        for name in node.graphs:
            _check_name(name, f"the name of a body of node {shown(node.name)}")


def _node_names_are_unique(graph: Graph) -> None:
    seen: set[str] = set()
    for node in graph.nodes:
        if node.name in seen:
            raise ModelError(f"two nodes are called {shown(node.name)}")
        seen.add(node.name)


def _inputs_and_outputs_exist(graph: Graph) -> None:
    if not graph.outputs:
        raise ModelError("the graph has no outputs")
    for what, names in (("input", graph.inputs), ("output", graph.outputs)):
        if len(set(names)) != len(names):
            raise ModelError(f"the graph lists an {what} twice: {shown(list(names))}")
        for name in names:
            if name not in graph.values:
                raise ModelError(f"graph {what} {shown(name)} is not among the values")
    for name in graph.inputs:
        if name in graph.initializers:
            raise ModelError(f"graph input {shown(name)} is an initializer as well")


def _references_are_known(graph: Graph) -> None:
    for node in graph.nodes:
        if not node.outputs:
            raise ModelError(f"{_node(node)} has no outputs")
        for name in (*filter(None, node.inputs), *node.outputs):
            if name not in graph.values:
                raise ModelError(f"{_node(node)} refers to {shown(name)}, which is not among the values")


def _values_are_made_once(graph: Graph) -> None:
    """Static single assignment."""
    made = dict.fromkeys(graph.inputs, "a graph input")
    made.update((name, "an initializer") for name in graph.initializers)
    for node in graph.nodes:
        for name in node.outputs:
            if name in made:
                raise ModelError(f"{_node(node)} makes {shown(name)}, which is already made as {made[name]}")
            made[name] = f"an output of {_node(node)}"


def _nodes_are_in_order(graph: Graph) -> None:
    """Topological order; with single assignment this also means that there is no cycle."""
    ready = {*graph.inputs, *graph.initializers}
    for node in graph.nodes:
        for name in filter(None, node.inputs):
            if name not in ready:
                maker = graph.producers.get(name)
                if maker is None:
                    raise ModelError(f"{_node(node)} reads {shown(name)}, which has no array and no node makes")
                raise ModelError(
                    f"{_node(node)} reads {shown(name)} before {_node(maker)} makes it: a cycle or a wrong order"
                )
        ready.update(node.outputs)


def _nothing_dangles(graph: Graph) -> None:
    read = {name for node in graph.nodes for name in node.inputs}
    read.update(graph.outputs)
    for name in graph.values:
        if name in graph.initializers:
            if name not in read:
                raise ModelError(f"initializer {shown(name)} is read by no node")
        elif name not in graph.producers and name not in graph.inputs:
            raise ModelError(f"value {shown(name)} has no array, and no node makes it")


def _initializers_match(graph: Graph) -> None:
    for name, array in graph.initializers.items():
        value = graph.values.get(name)
        if value is None:
            raise ModelError(f"initializer {shown(name)} is not among the values")
        if DType.of(array) is not value.dtype or array.shape != value.shape:
            raise ModelError(
                f"initializer {shown(name)} is {array.dtype.name} of shape {array.shape}; "
                f"the graph says {value.dtype.value} of shape {value.shape}"
            )


def _shapes_are_sane(graph: Graph) -> None:
    for value in graph.values.values():
        sizes = [size for size in value.shape if isinstance(size, int) and not isinstance(size, bool)]
        symbols = [size for size in value.shape if isinstance(size, str)]
        if len(sizes) + len(symbols) != len(value.shape) or len(value.shape) > MAX_RANK or min(sizes, default=0) < 0:
            raise ModelError(f"value {shown(value.name)} has shape {shown(value.shape)}; expected sizes and symbols")
        for symbol in symbols:
            _check_name(symbol, f"a size of value {shown(value.name)}")
        if math.prod(max(size, 1) for size in sizes) > MAX_ELEMENTS:
            raise ModelError(
                f"value {shown(value.name)} has shape {shown(value.shape)}: more than {MAX_ELEMENTS} elements"
            )


def _qparams_are_sound(graph: Graph) -> None:
    channels = 0
    for value in (value for one in _all_graphs(graph) for value in one.values.values()):
        if value.qparams is None:
            continue
        channels += value.qparams.scale.size
        if channels > MAX_CHANNELS:
            raise ModelError(f"the graph has more than {MAX_CHANNELS} quantization parameters")
        _check_qparams(value, value.qparams)


def _check_qparams(value: Value, qparams: QParams) -> None:
    where = f"value {shown(value.name)}"
    if qparams.dtype is not value.dtype or value.dtype not in (DType.INT8, DType.UINT8, DType.INT32):
        raise ModelError(
            f"{where} is {value.dtype.value} with parameters for {qparams.dtype.value}; expected int8, uint8 or int32"
        )
    expected = 1
    if qparams.axis is not None:
        if not 0 <= qparams.axis < len(value.shape) or not isinstance(value.shape[qparams.axis], int):
            raise ModelError(f"{where} of shape {value.shape} has parameters along axis {qparams.axis}")
        expected = int(value.shape[qparams.axis])
    for what, array, dtype in (("scale", qparams.scale, "float32"), ("zero_point", qparams.zero_point, "int32")):
        if array.shape != (expected,) or array.dtype.name != dtype:
            got = f"{array.dtype.name} of shape {array.shape}"
            raise ModelError(f"{where} has a {what} that is {got}; expected {dtype} of shape ({expected},)")
    # 1 / scale is what quantization multiplies by, so it must be finite too.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        sound = (qparams.scale > 0) & np.isfinite(qparams.scale) & np.isfinite(np.float32(1) / qparams.scale)
    if not sound.all():
        raise ModelError(f"{where} has scale {qparams.scale[~sound][0]}; expected a positive normal number")
    low, high = qparams.limits
    outside = (qparams.zero_point < low) | (qparams.zero_point > high)
    if outside.any():
        got = qparams.zero_point[outside][0]
        raise ModelError(f"{where} has zero_point {got}; expected {low}..{high} for {qparams.dtype.value}")


def _attrs_are_plain(graph: Graph) -> None:
    for node in graph.nodes:
        for name, attr in node.attrs.items():
            _check_name(name, f"an attribute of {_node(node)}")
            if not _is_plain(attr, MAX_ATTR_DEPTH):
                raise ModelError(
                    f"{_node(node)}: attribute {shown(name)} is {shown(attr)}; "
                    "expected a 64-bit integer, float, text, bool, None or tuples of them"
                )


def _bodies_are_sound(graph: Graph) -> None:
    for node in graph.nodes:
        for name, body in node.graphs.items():
            try:
                verify(body)
            except ModelError as error:
                raise ModelError(f"{_node(node)}, body {shown(name)}: {error}") from error


def _is_plain(attr: Attr, depth: int) -> bool:
    if isinstance(attr, tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in attr)
    if isinstance(attr, str):
        return len(attr) <= MAX_TEXT and _is_encodable(attr)
    if type(attr) is int:
        return attr in INT64
    return attr is None or isinstance(attr, (bool, float))


def _is_encodable(text: str) -> bool:
    """False for half of a surrogate pair, which UTF-8 cannot hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check_name(name: object, what: str, empty: bool = False) -> None:
    if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable() or not (name or empty):
        raise ModelError(f"{what} is {shown(name)}; expected 1 to {MAX_NAME} printable characters")


def _node(node: Node) -> str:
    return f"{node.op} {shown(node.name)}"


RULES: tuple[Callable[[Graph], None], ...] = (
    _bodies_are_bounded,
    _sizes_are_sane,
    _names_are_sane,
    _node_names_are_unique,
    _inputs_and_outputs_exist,
    _references_are_known,
    _values_are_made_once,
    _shapes_are_sane,
    _initializers_match,
    _nodes_are_in_order,
    _nothing_dangles,
    _qparams_are_sound,
    _attrs_are_plain,
    _bodies_are_sound,
)
"""In this order: each may rely on those before it."""
