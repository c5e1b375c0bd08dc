"""How a value lies in memory inside of a native segment."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

from qtool.ir import Node
from qtool.ops import attrs_of

Sizes = tuple[int, ...]


class Layout(enum.Enum):
    """``PLAIN`` is row-major as the graph has it, ``LAST`` has the channels (axis 1) behind all other axes."""

    PLAIN = "plain"
    LAST = "last"

    def axes(self, rank: int) -> Sizes:
        """The value's axes in the order in which they lie in memory."""
        if self is Layout.PLAIN or rank < 3:
            return tuple(range(rank))
        return (0, *range(2, rank), 1)

    def sizes(self, shape: Sizes) -> Sizes:
        """The shape in the order in which it lies in memory."""
        return tuple(shape[axis] for axis in self.axes(len(shape)))

    @property
    def other(self) -> Layout:
        return Layout.LAST if self is Layout.PLAIN else Layout.PLAIN


def layouts_agree(shape: Sizes) -> bool:
    """Whether both layouts are the same bytes: nothing to swap, or only sizes of 1."""
    return len(shape) < 3 or shape[1] == 1 or math.prod(shape[2:]) == 1


def permutation(shape: Sizes, source: Sequence[int], target: Sequence[int]) -> tuple[Sizes, Sizes] | None:
    """The sizes and the order (as ``numpy.transpose`` takes it) that bring memory with the axes in the order ``source``
    to the order ``target``; None where that changes no byte. Axes of size 1 are left out."""
    before = [axis for axis in source if shape[axis] != 1]
    after = [axis for axis in target if shape[axis] != 1]
    if before == after:
        return None
    return tuple(shape[axis] for axis in before), tuple(before.index(axis) for axis in after)


def dims_of(node: Node, rank: int) -> Sizes:
    """The order in which a permute or transpose puts the axes of its input."""
    attrs = attrs_of(node)
    if node.op == "permute":
        return tuple(dim % rank for dim in attrs.dims)
    dims = list(range(rank))
    first, second = attrs.dim0 % rank, attrs.dim1 % rank
    dims[first], dims[second] = second, first
    return tuple(dims)
