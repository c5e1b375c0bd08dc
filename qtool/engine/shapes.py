"""From the shapes of what is fed to the concrete shapes of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qtool.errors import DataError, ModelError
from qtool.ir import DType, Graph, Node, TensorType
from qtool.ops import attrs_of, get, infer_node
from qtool.ops.control import listed

Sizes = tuple[int, ...]
BORDERS = ("quantize", "dequantize")
MOST_NUMBERS = 256
"""Arithmetic on shapes is done on arrays of no more elements than this."""


def concrete_shapes(graph: Graph, fed: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """The shape of every value that inference can tell from those of the graph inputs.

    Left out are the values whose shapes depend on data. What depends on shapes alone, such as the numbers that a
    reshape is told, is computed on the way.
    """
    types: dict[str, TensorType] = {}
    for name in (*graph.inputs, *graph.initializers):
        type_ = graph.type_of(name)
        types[name] = TensorType(type_.dtype, fed.get(name, type_.shape), type_.value)
    for node in graph.nodes:
        inputs = [types[name] if name else None for name in node.inputs]
        types.update(zip(node.outputs, _computed(node, inputs) or infer_node(node, inputs), strict=True))
    return {name: tuple(int(size) for size in type_.shape) for name, type_ in types.items() if _is_known(type_)}


def _is_known(type_: TensorType) -> bool:
    return all(isinstance(size, int) for size in type_.shape)


def _computed(node: Node, inputs: Sequence[TensorType | None]) -> tuple[TensorType, ...] | None:
    """The outputs of arithmetic on a few known numbers."""
    given = [type_.value for type_ in inputs if type_ is not None]
    small = all(value is not None and value.size <= MOST_NUMBERS for value in given)
    if not given or not small or node.graphs or node.op in BORDERS:
        return None
    values = [None if type_ is None else type_.value for type_ in inputs]
    try:
        with np.errstate(all="ignore"):
            results = get(node.op).reference(attrs_of(node), *values)
    except DataError:  # running the node will tell
        return None
    return tuple(TensorType(DType.of(array), array.shape, array) for array in results)


def shapes_within(node: Node, body: Graph, shapes: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """The shapes of the values of a body the first time it runs, as far as those outside are known; {} where inference
    cannot tell any."""
    outer = list(node.inputs[1:] if node.op == "if" else node.inputs)
    fed = [shapes.get(name) for name in outer]
    if node.op == "loop":
        fed[:2] = [(), ()]
    elif node.op == "scan":
        attrs = attrs_of(node)
        axes = listed("axes", attrs.scan_input_axes, attrs.num_scan_inputs)
        for at, axis in enumerate(axes, attrs.states):
            whole = fed[at]
            fed[at] = None if whole is None else tuple(np.delete(whole, axis).tolist())
    known = {name: shape for name, shape in zip(body.inputs, fed, strict=True) if shape is not None}
    try:
        return concrete_shapes(body, known)
    except ModelError:
        return {}


def nominal_shapes(graph: Graph) -> dict[str, Sizes]:
    """Shapes of the graph inputs with 1 for every size that is only known at run time."""
    return {
        name: tuple(1 if isinstance(dim, str) else dim for dim in graph.values[name].shape) for name in graph.inputs
    }
