"""What the import knows of each value of an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtool.ir import Array, DType, QParams, Shape, TensorType

if TYPE_CHECKING:
    from qtool.frontends.onnx.body import Body


class Unsupported(Exception):  # noqa: N818  # it is no error of the program: the import collects them all
    """A node that qtool cannot express; the text says what about it."""


class Skipped(Exception):  # noqa: N818  # as above
    """A node that depends on one that is not supported; that one is told, this one is not."""


@dataclass(eq=False)
class Known:
    """One value: a constant, a vector of sizes, or a tensor that is only known at run time.

    ``array`` is set for a constant. ``symbols`` is set for integers made of the sizes of tensors: an object array of
    ints and ``Size``, evaluated while importing. ``name`` is the value's name in the graph of ``home``, "" as long as
    nobody needs it there; ``make`` then makes it. ``quantized`` is the same value as the graph holds quantized tensors:
    its integers stand for real numbers, which ONNX only says at the DequantizeLinear behind it.
    """

    type: TensorType
    array: Array | None = None
    symbols: NDArray[Any] | None = None
    name: str = ""
    hint: str = ""
    """ONNX's name of a constant."""
    home: Body | None = None
    make: Callable[[], Known] | None = None
    quantized: Quantized | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """What converters tell one another of a value: the float tensor behind dynamically quantized integers, ..."""

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    @property
    def dtype(self) -> DType:
        return self.type.dtype


@dataclass(frozen=True)
class Quantized:
    """A quantized value of the graph. ``real`` stands for its numbers as the operators see them."""

    real: Known
    qparams: QParams


def constant_of(array: Array, hint: str = "") -> Known:
    """A constant; the array is taken as it is."""
    array = np.asarray(array)
    return Known(TensorType(DType.of(array), tuple(int(n) for n in array.shape)), array=array, hint=hint)
