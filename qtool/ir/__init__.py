"""The graph and its file."""

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
    "Node",
    "QParams",
    "Shape",
    "TensorType",
    "Value",
    "constant",
    "remake",
    "rewire",
]
