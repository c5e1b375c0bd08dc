"""The graph and its file."""

from qtool.ir.bodies import Located, all_bodies, all_nodes, bodies_by_path, body_path, with_bodies
from qtool.ir.graph import EMPTY, Array, Attr, Graph, Json, Node, Value, constant, remake, rewire
from qtool.ir.types import Dim, DType, QParams, Shape, TensorType

__all__ = [
    "EMPTY",
    "Array",
    "Attr",
    "DType",
    "Dim",
    "Graph",
    "Json",
    "Located",
    "Node",
    "QParams",
    "Shape",
    "TensorType",
    "Value",
    "all_bodies",
    "all_nodes",
    "bodies_by_path",
    "body_path",
    "constant",
    "remake",
    "rewire",
    "with_bodies",
]
