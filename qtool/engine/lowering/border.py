"""The borders between int8 and float: quantize and dequantize, as operators and on the way through others."""

from __future__ import annotations

import math

from qtool.engine.lowering.groups import Group
from qtool.engine.lowering.layout import Layout, Sizes
from qtool.engine.lowering.segment import Segment
from qtool.ir import DType, QParams
from qtool.native import Kind, abi


def lower_border(segment: Segment, group: Group) -> None:
    """quantize and dequantize, which may change the layout on the way."""
    source, node = segment.source, group.host
    quantizes = node.op == "quantize"
    x, out = node.inputs[0], node.outputs[0]
    qparams = source.per_tensor(out if quantizes else x)
    source.need_float(x if quantizes else out)
    target = segment.wants(out)
    origin = target if target in segment.layouts(x) else segment.layouts(x)[0]
    args = _args(qparams, _picture(segment.shape(x), origin, target))
    read = segment.read(x, origin, direct=True)
    segment.emit(Kind.QUANTIZE if quantizes else Kind.DEQUANTIZE, (read,), segment.write(out, target), args)


def _picture(shape: Sizes, origin: Layout, target: Layout) -> dict[str, int]:
    """``outer``, ``rows``, ``cols`` and ``transpose`` of a change of layout, or of none."""
    if origin is target:
        return {"outer": 1, "rows": 1, "cols": math.prod(shape)}
    channels, pixels = shape[1], math.prod(shape[2:])
    rows, cols = (channels, pixels) if target is Layout.LAST else (pixels, channels)
    return {"outer": shape[0], "rows": rows, "cols": cols, "transpose": 1}


def _args(qparams: QParams, picture: dict[str, int]) -> abi.QuantizeArgs:
    storage = abi.Storage.INT8_SHIFTED if qparams.dtype is DType.INT8 else abi.Storage.UINT8
    return abi.make(
        abi.QuantizeArgs,
        **picture,
        zero_point=int(qparams.zero_point[0]),
        scale=float(qparams.scale[0]),
        storage=storage,
    )


def as_floats(segment: Segment, name: str, layout: Layout) -> int:
    """The buffer of a value's numbers in float32, in a layout."""
    source = segment.source
    if source.qparams(name) is None:
        source.need_float(name)
        return segment.read(name, layout)
    qparams, read = source.per_tensor(name), segment.read(name, layout, direct=True)
    floats = segment.buffer(4 * segment.sizes[read])
    segment.emit(Kind.DEQUANTIZE, (read,), floats, _args(qparams, {"outer": 1, "rows": 1, "cols": segment.sizes[read]}))
    return floats


def quantize_floats(segment: Segment, floats: int, target: int, name: str) -> None:
    """Brings floats to the parameters of a value."""
    args = _args(segment.source.per_tensor(name), {"outer": 1, "rows": 1, "cols": segment.sizes[target]})
    segment.emit(Kind.QUANTIZE, (floats,), target, args)
