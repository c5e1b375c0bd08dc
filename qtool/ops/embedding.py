"""Look-up of rows of a table."""

from __future__ import annotations

from qtool.errors import DataError
from qtool.ir import Array, DType, TensorType
from qtool.ops.activation import NoAttrs
from qtool.ops.dims import need_float, need_rank
from qtool.ops.registry import OpSpec, register, require


def embedding_type(_: NoAttrs, ids: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
    require(ids.dtype in (DType.INT64, DType.INT32), f"{ids.dtype.value} as ids", "int64 or int32")
    need_float(weight=weight)
    need_rank("weight", weight, 2, "(rows, columns)")
    return (TensorType(weight.dtype, (*ids.shape, weight.shape[1])),)


def embedding(_: NoAttrs, ids: Array, weight: Array) -> tuple[Array, ...]:
    """``ids`` of any shape -> (*ids.shape, columns); DataError for an id that is no row."""
    if ids.size and (ids.min() < 0 or ids.max() >= len(weight)):
        raise DataError(f"embedding: got ids from {ids.min()} to {ids.max()}, expected 0 to {len(weight) - 1}")
    return (weight[ids],)


register(
    OpSpec(
        name="embedding",
        attrs=NoAttrs,
        inputs=("ids", "weight"),
        infer=embedding_type,
        reference=embedding,
        onnx=("Gather",),
    )
)
