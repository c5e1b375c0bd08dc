"""Values that lie inside of another one's buffer, as permutations, slices and reshapes of it do: without a copy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qtool.engine.lowering.layout import Sizes


@dataclass(frozen=True)
class View:
    """Where the elements of a value are: ``strides`` and ``offset`` are in elements."""

    buffer: int
    strides: Sizes
    offset: int = 0

    def permuted(self, dims: Sizes) -> View:
        return View(self.buffer, tuple(self.strides[dim] for dim in dims), self.offset)

    def cut(self, dim: int, start: int) -> View:
        return View(self.buffer, self.strides, self.offset + start * self.strides[dim])

    def reshaped(self, old: Sizes, new: Sizes) -> View | None:
        """The same elements in another shape; None where no strides can say it."""
        strides = _reshaped(old, self.strides, new)
        return None if strides is None else View(self.buffer, strides, self.offset)

    def permutation(self, shape: Sizes) -> tuple[Sizes, Sizes] | None:
        """The sizes of dense memory and the order (as ``numpy.transpose`` takes it) that make the value of it; None
        where it is not all of such memory."""
        axes = [axis for axis, size in enumerate(shape) if size != 1]
        memory = sorted(axes, key=lambda axis: -self.strides[axis])
        sizes = tuple(shape[axis] for axis in memory)
        if self.offset or tuple(self.strides[axis] for axis in memory) != dense(sizes):
            return None
        return sizes, tuple(memory.index(axis) for axis in axes)


def dense(shape: Sizes) -> Sizes:
    """The strides of row-major elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def broadcast_strides(shape: Sizes, strides: Sizes, rank: int) -> Sizes:
    """Strides with ``rank`` axes, 0 for those that are spread."""
    own = tuple(0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    return (0,) * (rank - len(own)) + own


def _reshaped(old: Sizes, strides: Sizes, new: Sizes) -> Sizes | None:
    """Axes are matched in groups of as many elements; those of a group must lie as if they were one axis."""
    axes = [(size, stride) for size, stride in zip(old, strides, strict=True) if size != 1]
    found: list[int] = []
    sizes = list(new)
    while sizes:
        if sizes[0] == 1:
            found.append(0)
            sizes.pop(0)
            continue
        if not axes:
            return None
        size, stride = axes.pop(0)
        count = 1
        while size % count == 0 and count < size and sizes:
            count *= sizes.pop(0)
        while count > size and axes:
            more, inner = axes.pop(0)
            if stride != inner * more:
                return None
            size, stride = size * more, inner
            while count < size and sizes and size % (count * sizes[0]) == 0:
                count *= sizes.pop(0)
        if count != size:
            return None
        taken = new[len(found) : len(new) - len(sizes)]
        found += [stride * step for step in dense(taken)]
    return tuple(found)
