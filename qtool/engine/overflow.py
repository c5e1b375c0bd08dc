"""Whether the sums of a quantized graph's layers fit their accumulators, looked at before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

from qtool.engine.int8 import Call, Operand, accumulate_parameters
from qtool.engine.int8_products import transposed_parameters, transposed_weight
from qtool.engine.requantize import arithmetic_of, check_accumulator
from qtool.ir import Graph, Node, QParams
from qtool.ops import QuantRule, attrs_of, get


def check_accumulators(graph: Graph) -> tuple[str, ...]:
    """Warnings about the arithmetic of quantized convolutions and linear layers, each naming its layer.

    QuantizationError, naming the layer, where an int32 accumulator could overflow.
    """
    return tuple(_warnings(graph))


def _warnings(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        for body in node.graphs.values():
            yield from _warnings(body)
        out = graph.values[node.outputs[0]].qparams
        weight = graph.initializers.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if out is not None and weight is not None and get(node.op).rule is QuantRule.ACCUMULATE:
            call = _call(graph, node, out)
            if node.op.startswith("conv_transpose"):
                weight, params = transposed_weight(call).array, transposed_parameters(call)
            else:
                params = accumulate_parameters(call)
            yield from check_accumulator(node.scope or node.name, weight, call.input(0).params, params)


def _call(graph: Graph, node: Node, out: QParams) -> Call:
    """The node's call; activations, whose numbers are not known, have the weight's array in their place."""
    weight = graph.initializers[node.inputs[1]]
    operands = tuple(
        Operand(graph.initializers.get(name, weight), graph.values[name].qparams) if name else None
        for name in node.inputs
    )
    return Call(get(node.op), attrs_of(node), arithmetic_of(graph.backend), operands, (out,))
