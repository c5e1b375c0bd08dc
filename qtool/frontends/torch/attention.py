"""Scaled dot-product attention as the products and the softmax that it is made of."""

from __future__ import annotations

import numpy as np

from qtool.frontends.torch.call import Call
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.ir import Dim, DType


def attention(call: Call) -> Known:
    """softmax(q . k' * scale + mask) . v (Vaswani et al., 2017), over the last two axes (tokens, features)."""
    query, key, value = (call.x(name) for name in ("query", "key", "value"))
    if call.get("dropout_p", 0.0):
        raise Unsupported("it drops out, which is for training: call module.eval() before the export")
    if call.get("enable_gqa", False):
        key, value = (_repeated(call, known, query) for known in (key, value))
    features = query.shape[-1]
    if not isinstance(features, int):
        raise Unsupported("the number of features depends on the input")
    scale = call.get("scale", features**-0.5)
    scaled = call.helper("mul", [query, call.constant(float(scale), query.dtype)])
    scores = call.helper("matmul", [scaled, call.helper("transpose", [key], dim0=-2, dim1=-1)])
    mask = _mask(call, query, key)
    if mask is not None and mask.dtype is DType.BOOL:
        scores = call.helper("where", [mask, scores, call.constant(-np.inf, scores.dtype)])
    elif mask is not None:
        scores = call.helper("add", [scores, mask])
    return call.emit("matmul", [call.helper("softmax", [scores], dim=-1), value])


def _mask(call: Call, query: Known, key: Known) -> Known | None:
    """True where a query may look at a key, or what is added to the scores."""
    if not call.get("is_causal", False):
        return call.maybe("attn_mask")
    rows, columns = query.shape[-2], key.shape[-2]
    if isinstance(rows, int) and isinstance(columns, int):
        return constant_of(np.tri(rows, columns, dtype=np.bool_))
    places = [_count(call, known, rank) for known, rank in ((query, 2), (key, 1))]
    return call.helper("less_or_equal", places[::-1])


def _count(call: Call, known: Known, rank: int) -> Known:
    """0, 1, 2, ... along the tokens, as a column or as a row."""
    length: Dim = known.shape[-2]
    count = constant_of(np.array(length, np.int64)) if isinstance(length, int) else _length(call, known)
    zero, one = (call.constant(number, DType.INT64) for number in (0, 1))
    places = call.helper("range", [zero, count, one])
    return call.helper("unsqueeze", [places], dim=1) if rank == 2 else places


def _length(call: Call, known: Known) -> Known:
    size = call.helper("shape", [known], start=known.rank - 2, end=known.rank - 1)
    return call.helper("reshape_to", [size, constant_of(np.zeros(0, np.int64))])


def _repeated(call: Call, known: Known, query: Known) -> Known:
    """Fewer heads of keys and values than of queries: each serves several."""
    heads, given = query.shape[-3], known.shape[-3]
    if not isinstance(heads, int) or not isinstance(given, int):
        raise Unsupported("the number of heads depends on the input")
    if heads == given:
        return known
    places = constant_of(np.repeat(np.arange(given), heads // given))
    return call.helper("gather", [known, places], axis=known.rank - 3)
