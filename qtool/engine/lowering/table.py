"""int8 operators that are functions of one byte."""

from __future__ import annotations

from qtool.engine.lowering.segment import Source
from qtool.engine.reference import run_node
from qtool.engine.tables import Table, every_value, offset
from qtool.ir import Node

POINTWISE = (
    *("relu", "relu6", "hardtanh", "clamp", "leaky_relu", "prelu", "elu", "hardswish", "hardsigmoid", "sigmoid"),
    *("tanh", "add", "mul"),
)


def byte_table(source: Source, node: Node) -> Table | None:
    """The table of an int8 node that is a function of one element: run by the reference on every byte.

    None for any other node. Constants of one element (a scalar, a single slope) may take part.
    """
    moving = [name for name in node.inputs if name and name not in source.constants]
    constants = {name: source.constants[name] for name in node.inputs if name in source.constants}
    if node.op not in POINTWISE or len(moving) != 1 or node.inputs.count(moving[0]) != 1:
        return None
    x, out = source.qparams(moving[0]), source.qparams(node.outputs[0])
    single = all(array.size == 1 for array in constants.values())
    if x is None or out is None or x.axis is not None or out.axis is not None or not single:
        return None
    (result,) = run_node(source.graph, node, {**constants, moving[0]: every_value(x)})
    return offset(result.ravel(), out)
