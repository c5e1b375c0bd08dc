"""Element types, shapes and quantization parameters of tensors."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.errors import ModelError
from qtool.ir.pieces import row_pieces

Dim = int | str
"""A known size, or the name of one that is only known at run time (the batch is ``"N"``)."""

Shape = tuple[Dim, ...]


class DType(enum.Enum):
    """Element type of a value; the enum value is NumPy's name of it."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    FLOAT16 = "float16"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    UINT64 = "uint64"
    UINT32 = "uint32"
    UINT16 = "uint16"
    UINT8 = "uint8"
    BOOL = "bool"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        return np.dtype(self.value)

    @property
    def is_float(self) -> bool:
        return self in (DType.FLOAT32, DType.FLOAT64, DType.FLOAT16)

    @property
    def is_integer(self) -> bool:
        return not self.is_float and self is not DType.BOOL

    @staticmethod
    def of(array: NDArray[np.generic]) -> DType:
        """The DType of an array; ModelError for an element type that a graph cannot hold."""
        try:
            return DType(array.dtype.name)
        except ValueError:
            allowed = ", ".join(t.value for t in DType)
            raise ModelError(f"element type {array.dtype.name} is not supported; expected one of {allowed}") from None


@dataclass(frozen=True, eq=False)
class QParams:
    """Affine quantization: real = scale * (q - zero_point).

    ``scale`` is float32 and ``zero_point`` int32, both of shape (1,) per tensor (``axis`` None) or (C,) along ``axis``.
    ``dtype`` is the storage type, INT8 or UINT8 (INT32 for a bias).
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    dtype: DType
    axis: int | None = None

    @staticmethod
    def per_tensor(scale: float, zero_point: int, dtype: DType) -> QParams:
        return QParams(np.array([scale], np.float32), np.array([zero_point], np.int32), dtype)

    def __post_init__(self) -> None:
        for array in (self.scale, self.zero_point):
            array.setflags(write=False)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, QParams)
            and (self.dtype, self.axis) == (other.dtype, other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash((self.dtype, self.axis, self.scale.tobytes(), self.zero_point.tobytes()))

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest storage value."""
        info = np.iinfo(self.dtype.value)
        return int(info.min), int(info.max)

    def quantize(self, x: NDArray[np.float32]) -> NDArray[np.generic]:
        """q = clamp(nearbyint(x * (1 / scale) + zero_point)), half to even, in float32.

        As PyTorch 2.13 does it on every engine: per tensor, the product and the sum are rounded once (a fused
        multiply-add, FBGEMM ``QuantizeAvx2``), per channel each by itself. The clamp is that of the storage type, not
        of the range the scale was chosen for, as in PyTorch. NaN gives the smallest storage value.
        """
        if x.ndim == 0:
            return self._quantize(x)
        q = np.empty(x.shape, self.dtype.numpy)
        for rows in row_pieces(x.shape):
            q[rows] = self.of_rows(rows)._quantize(x[rows])
        return q

    def _quantize(self, x: NDArray[np.float32]) -> NDArray[np.generic]:
        inverse, zero_point = self._along_axis(np.float32(1.0) / self.scale, self.zero_point, x.ndim)
        low, high = self.limits
        with np.errstate(over="ignore"):  # what overflows to infinity is clamped
            if self.axis is None:  # float64 holds the product of two float32 exactly
                q = (np.multiply(x, inverse, dtype=np.float64) + zero_point).astype(np.float32)
            else:
                q = x * inverse + zero_point.astype(np.float32)
        clamped = np.fmin(np.fmax(np.rint(q), low), high)
        return np.asarray(clamped.astype(self.dtype.numpy))

    def dequantize(self, q: NDArray[np.generic]) -> NDArray[np.float32]:
        """real = scale * (q - zero_point), in float32."""
        scale, zero_point = self._along_axis(self.scale, self.zero_point, q.ndim)
        centred = q.astype(np.int32) - zero_point
        return np.asarray(scale * centred.astype(np.float32), np.float32)

    def of_rows(self, rows: slice) -> QParams:
        """The parameters of a stretch of the first axis."""
        return self if self.axis != 0 else QParams(self.scale[rows], self.zero_point[rows], self.dtype, 0)

    def _along_axis(
        self, scale: NDArray[np.float32], zero_point: NDArray[np.int32], ndim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        if self.axis is None:
            return scale.reshape(()), zero_point.reshape(())
        shape = [1] * ndim
        shape[self.axis] = -1
        return scale.reshape(shape), zero_point.reshape(shape)


@dataclass(frozen=True)
class TensorType:
    """What shape inference knows of a value; ``value`` is the array itself where it is a constant, for operators whose
    output shape depends on numbers (it has no part in comparisons)."""

    dtype: DType
    shape: Shape
    value: NDArray[Any] | None = field(default=None, compare=False, repr=False)
