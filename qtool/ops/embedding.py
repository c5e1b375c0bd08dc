"""Look-up of rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, DType, TensorType
from qtool.ops.activation import NoAttrs
from qtool.ops.dims import need_float, need_rank, need_shape, spell
from qtool.ops.registry import Attrs, OpSpec, VjpCall, register, require
from qtool.ops.vjp import Gradients, add_along, grad_of, gradients


@dataclass(frozen=True)
class EmbeddingRowsAttrs(Attrs):
    """Rows of ``columns`` numbers of 8 bits, or of 4: two in a byte, the first in the lower half."""

    columns: int
    bits: int = 8


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


def embedding_vjp(call: VjpCall) -> Gradients:
    ids, weight = call.inputs
    assert ids is not None
    assert weight is not None
    rows, columns = weight.shape
    return gradients(
        call, None, lambda: add_along(grad_of(call).reshape(-1, columns), ids.reshape(-1).astype(np.int64), rows, 0)
    )


def embedding_rows_type(
    attrs: EmbeddingRowsAttrs, ids: TensorType, weight: TensorType, scale: TensorType, offset: TensorType
) -> tuple[TensorType, ...]:
    require(ids.dtype in (DType.INT64, DType.INT32), f"{ids.dtype.value} as ids", "int64 or int32")
    require(attrs.bits in (4, 8), f"bits {attrs.bits}", "8 or 4")
    require(attrs.columns >= 1, f"columns {attrs.columns}", "at least 1")
    require(weight.dtype is DType.UINT8, f"{weight.dtype.value} as weight", "uint8")
    need_rank("weight", weight, 2, "(rows, bytes)")
    width = -(-attrs.columns * attrs.bits // 8)
    require(weight.shape[1] == width, f"weight of shape {spell(weight.shape)}", f"{width} bytes a row")
    need_float(scale=scale, offset=offset)
    need_shape("scale", scale, weight.shape[:1])
    need_shape("offset", offset, weight.shape[:1])
    return (TensorType(scale.dtype, (*ids.shape, attrs.columns)),)


def embedding_rows(
    attrs: EmbeddingRowsAttrs, ids: Array, weight: Array, scale: Array, offset: Array
) -> tuple[Array, ...]:
    """scale * q + offset of the rows asked for, rounded once, as FBGEMM has it."""
    (rows,) = embedding(NoAttrs(), ids, weight)
    if attrs.bits == 4:
        rows = np.stack([rows & 15, rows >> 4], axis=-1).reshape(*ids.shape, -1)[..., : attrs.columns]
    y = rows * scale[ids].astype(np.float64)[..., None] + offset[ids].astype(np.float64)[..., None]
    return (np.asarray(y, scale.dtype),)


register(
    OpSpec(
        name="embedding_rows",
        attrs=EmbeddingRowsAttrs,
        inputs=("ids", "weight", "scale", "offset"),
        infer=embedding_rows_type,
        reference=embedding_rows,
    )
)
register(
    OpSpec(
        name="embedding",
        attrs=NoAttrs,
        inputs=("ids", "weight"),
        infer=embedding_type,
        reference=embedding,
        onnx=("Gather",),
        kernel="embedding",
        vjp=embedding_vjp,
    )
)
