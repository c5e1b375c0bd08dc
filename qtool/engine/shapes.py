"""From the shapes of what is fed to the concrete shape of every value."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.ir import Graph, TensorType
from qtool.ops import infer_node

Sizes = tuple[int, ...]


def concrete_shapes(graph: Graph, fed: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """The shape of every value, by inference from those of the graph inputs."""
    types: dict[str, TensorType] = {
        name: TensorType(value.type.dtype, fed.get(name, value.shape))
        for name, value in graph.values.items()
        if name in graph.inputs or name in graph.initializers
    }
    for node in graph.nodes:
        inferred = infer_node(node, [types[name] if name else None for name in node.inputs])
        types.update(zip(node.outputs, inferred, strict=True))
    return {name: tuple(int(size) for size in known.shape) for name, known in types.items()}


def nominal_shapes(graph: Graph) -> dict[str, Sizes]:
    """Shapes of the graph inputs with 1 for every size that is only known at run time."""
    return {
        name: tuple(1 if isinstance(dim, str) else dim for dim in graph.values[name].shape) for name in graph.inputs
    }
