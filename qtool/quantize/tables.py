"""Tables of embeddings in 8 or 4 bits, each row with a float scale and offset."""

from __future__ import annotations

import numpy as np

from qtool.errors import QuantizationError
from qtool.ir import Array, Node, Value, constant
from qtool.ir.pieces import all_finite, row_pieces
from qtool.ops.embedding import EmbeddingRowsAttrs
from qtool.ops.registry import plain_attrs

EPS = np.float32(2.0**-23)


def quantize_table(weight: Array, bits: int) -> tuple[Array, Array, Array]:
    """(rows, columns) float32 -> packed uint8, scale and offset (rows,).

    PyTorch's per_channel_affine_float_qparams (torch/ao/quantization/observer.py, ``_calculate_qparams``): scale =
    (max - min) / (2**bits - 1), or 1 where that is below eps, zero point = -min / scale, a float; q = nearbyint(
    x / scale + zero point); offset = -zero point * scale.
    """
    rows, columns = weight.shape
    stored = np.empty((rows, columns if bits == 8 else (columns + 1) // 2), np.uint8)
    scale, offset = np.empty(rows, np.float32), np.empty(rows, np.float32)
    for piece in row_pieces(weight.shape):
        stored[piece], scale[piece], offset[piece] = _quantize_rows(weight[piece], bits)
    return stored, scale, offset


def _quantize_rows(weight: Array, bits: int) -> tuple[Array, Array, Array]:
    low, high = weight.min(axis=1), weight.max(axis=1)
    top = 2**bits - 1
    scale = (high - low) / np.float32(top)
    scale = np.where(scale > EPS, scale, np.float32(1))
    zero = -low / scale
    q = np.rint(weight * (np.float32(1) / scale)[:, None] + zero[:, None])
    stored = np.clip(q, 0, top).astype(np.uint8)
    if bits == 4:
        padded = np.pad(stored, ((0, 0), (0, stored.shape[1] % 2)))
        stored = padded[:, ::2] | (padded[:, 1::2] << 4)
        return stored, _as_half(scale), _as_half(-zero * scale)
    return stored, scale, -zero * scale


def _as_half(x: Array) -> Array:
    """Rounded to float16, as PyTorch stores scales and offsets of 4-bit rows; but not what float16 cannot hold."""
    with np.errstate(over="ignore"):
        half = x.astype(np.float16).astype(np.float32)
    return np.where(np.abs(half - x) <= np.abs(x) * np.float32(2.0**-10), half, x)


def packed_embedding(node: Node, weight: Array, bits: int) -> tuple[Node, dict[str, Array], list[Value]]:
    """The node over a packed table, the table's arrays, and their values. QuantizationError for NaN and infinity."""
    name = node.inputs[1]
    if not all_finite(weight):
        raise QuantizationError(f"'{name}' of embedding '{node.name}' holds NaN or infinity")
    names = tuple(f"{name}.{part}{bits}" for part in ("rows", "scale", "offset"))
    arrays = dict(zip(names, quantize_table(weight, bits), strict=True))
    attrs = plain_attrs(EmbeddingRowsAttrs(weight.shape[1], bits))
    packed = Node("embedding_rows", node.name, (node.inputs[0], *names), node.outputs, attrs, node.scope)
    return packed, arrays, [constant(key, array) for key, array in arrays.items()]
