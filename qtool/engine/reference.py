"""The NumPy interpreter: the definition of every operator in a graph, float and int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qtool.engine import dynamic, int8, recurrent
from qtool.engine.control import RunBody, run_control
from qtool.engine.int8 import Call, Operand
from qtool.engine.int8_pool import POOLS
from qtool.engine.int8_products import PRODUCTS
from qtool.engine.requantize import arithmetic_of
from qtool.errors import DataError, EngineError
from qtool.ir import Array, Graph, Node, QParams, Value
from qtool.ops import attrs_of, get
from qtool.ops.activation import activate

DEFINITIONS = {**int8.INT8, **POOLS, **PRODUCTS}


def run(graph: Graph, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
    """Computes a graph node by node.

    ``feeds`` has an array for each graph input, of its dtype and shape; symbolic sizes must agree with one another.
    ``outputs`` names the values wanted, any of the graph's, by default its outputs; quantized ones come as the stored
    integers. Only what they need is computed. Raises DataError for feeds or names that do not fit the graph.
    """
    wanted = tuple(graph.outputs if outputs is None else outputs)
    for name in wanted:
        if name not in graph.values:
            raise DataError(f"the graph has no value '{name}'")
    arrays: dict[str, Array] = {**graph.initializers, **check_feeds(graph, feeds)}
    remaining = needed_nodes(graph, wanted)
    last_use = {name: index for index, node in enumerate(remaining) for name in node.inputs}
    for index, node in enumerate(remaining):
        arrays.update(zip(node.outputs, run_node(graph, node, arrays), strict=True))
        for name in set(node.inputs):
            if name and last_use[name] == index and name not in wanted:
                del arrays[name]
    return {name: arrays[name] for name in wanted}


def check_feeds(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds as arrays; DataError for one that is missing, not known, or of another dtype or shape."""
    unknown = sorted(set(feeds) - set(graph.inputs))
    if unknown:
        raise DataError(f"the model has no input '{unknown[0]}'; its inputs are {', '.join(graph.inputs) or 'none'}")
    sizes: dict[str, int] = {}
    for name in graph.inputs:
        if name not in feeds:
            raise DataError(f"input '{name}' is missing")
        _check_feed(graph.values[name], np.asarray(feeds[name]), sizes)
    return {name: np.asarray(feeds[name]) for name in graph.inputs}


def _check_feed(value: Value, array: Array, sizes: dict[str, int]) -> None:
    where = f"input '{value.name}'"
    if array.dtype != value.dtype.numpy:
        raise DataError(f"{where}: got dtype {array.dtype}, expected {value.dtype.value}")
    spelt = "(" + ", ".join(map(str, value.shape)) + ")"
    if array.ndim != len(value.shape):
        raise DataError(f"{where}: got shape {array.shape}, expected {spelt}")
    for got, expected in zip(array.shape, value.shape, strict=True):
        if isinstance(expected, int):
            if got != expected:
                raise DataError(f"{where}: got shape {array.shape}, expected {spelt}")
        elif sizes.setdefault(expected, got) != got:
            raise DataError(f"{where}: got {got} for size '{expected}', expected {sizes[expected]} as before")


def needed_nodes(graph: Graph, wanted: Sequence[str]) -> list[Node]:
    """The nodes that the wanted values depend on, in execution order."""
    needed, found = set(wanted), []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            found.append(node)
            needed.update(node.inputs)
    return found[::-1]


def run_body(node: Node, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a body of control flow."""
    return run(node.graphs[name], feeds)


def run_node(
    graph: Graph, node: Node, arrays: Mapping[str, Array], body_runner: RunBody = run_body
) -> tuple[Array, ...]:
    """The outputs of one node from the arrays of its inputs; EngineError, with the node's name, where it cannot run."""
    inputs = tuple(Operand(arrays[name], graph.values[name].qparams) if name else None for name in node.inputs)
    outputs = tuple(graph.values[name].qparams for name in node.outputs)
    try:
        if node.graphs:
            return run_control(node, [None if operand is None else operand.array for operand in inputs], body_runner)
        return _run(graph, node, inputs, outputs)
    except (EngineError, DataError) as error:
        raise type(error)(f"{node.op} '{node.name}': {error}") from error


def _run(
    graph: Graph, node: Node, inputs: tuple[Operand | None, ...], outputs: tuple[QParams | None, ...]
) -> tuple[Array, ...]:
    if node.op == "quantize" and outputs[0] is not None and inputs[0] is not None:
        return (outputs[0].quantize(inputs[0].array),)
    if node.op == "dequantize" and inputs[0] is not None:
        return (inputs[0].floats(),)
    spec, attrs = get(node.op), attrs_of(node)
    if node.op == "linear_dynamic":
        return (_linear_dynamic(graph, attrs, inputs),)
    if node.op in recurrent.KINDS:
        return recurrent.recurrent(node.op, arithmetic_of(graph.backend), attrs, inputs)
    quantized = tuple(q for q in outputs if q is not None)
    if quantized:
        call = Call(spec, attrs, arithmetic_of(graph.backend), inputs, quantized)
        return DEFINITIONS.get(node.op, int8.by_float)(call)
    if any(operand is not None and operand.qparams is not None for operand in inputs):
        raise EngineError("got a quantized input and a float output, expected a dequantize between them")
    with np.errstate(all="ignore"):  # infinities and NaN go through the model as they do everywhere
        results = spec.reference(attrs, *(None if operand is None else operand.array for operand in inputs))
    return tuple(results)


def _linear_dynamic(graph: Graph, attrs: Any, inputs: tuple[Operand | None, ...]) -> Array:
    x, weight, bias = (*inputs, None)[:3]
    if x is None or weight is None:
        raise EngineError("expected an input and a weight")
    if not np.isfinite(x.array).all():
        raise DataError("its input holds NaN or infinity, which cannot be quantized")
    rows = x.array.reshape(-1, x.array.shape[-1])
    y = dynamic.linear_dynamic(
        arithmetic_of(graph.backend),
        dynamic.quantize_rows(rows, attrs.reduce_range, attrs.row_wise),
        (weight.array, weight.params),
        None if bias is None else bias.array,
    )
    return activate(y, attrs.activation, attrs.clamp).reshape(*x.array.shape[:-1], -1)
