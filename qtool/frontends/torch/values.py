"""What the import knows of each tensor of an exported program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, DType, Shape


class Unsupported(Exception):  # noqa: N818  # it is no error of the program: the import collects them all
    """An operator that qtool cannot express as it is used here; the text says what about it."""


@dataclass(frozen=True, eq=False)
class Known:
    """One tensor: a value of the graph (``name``), a constant (``array``), or one filled with a number (``fill``).

    A constant enters the graph when an operator of the graph reads it, under the name ``hint`` if it has one; what is
    computed from constants only is computed at once. A filled tensor has sizes that are only known at run time.
    """

    dtype: DType
    shape: Shape
    name: str = ""
    array: Array | None = None
    hint: str = ""
    fill: bool | int | float | None = None
    turned: Known | None = None
    """The constant of which this one is the matrix transpose: a linear layer wants that one."""

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_zero(self) -> bool:
        """Whether all of its numbers are known to be 0."""
        return self.fill == 0 if self.array is None else not self.array.any()


def constant_of(array: Array, hint: str = "") -> Known:
    """A constant; the array is taken as it is."""
    array = np.asarray(array)
    return Known(DType.of(array), tuple(int(n) for n in array.shape), array=array, hint=hint)
