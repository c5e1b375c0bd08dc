"""Operators that move, select or join values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtool.exporters.onnx.call import Call
from qtool.ir import Shape
from qtool.ops.dims import axis_of
from qtool.ops.geometry import Padding
from qtool.ops.shape import pad_pairs

TO_THE_END = 2**63 - 1
PAD_MODES = {"constant": "constant", "zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
WRAP_SINCE = 19


def flatten(call: Call) -> str:
    """Flatten where it says the same, else Reshape."""
    shape, attrs = call.value().shape, call.attrs
    rank = len(shape)
    if rank < 2:
        return call.emit("Reshape", call.x(), call.ints([-1], "shape"))
    start, end = axis_of(attrs.start_dim, rank), axis_of(attrs.end_dim, rank)
    if (start, end) == (1, rank - 1):
        return call.emit("Flatten", call.x(), axis=1)
    return _reshape_kept(call, shape, start, end)


def _reshape_kept(call: Call, shape: Shape, start: int, end: int) -> str:
    """Axes start to end merged. A size behind them that is only known at run time is read from the tensor."""
    tail = shape[end + 1 :]
    if all(isinstance(dim, int) for dim in tail):
        target = [*([0] * start), -1, *(int(dim) for dim in tail)]
        return call.emit("Reshape", call.x(), call.ints(target, "shape"))
    sizes = call.emit("Shape", call.x())
    head = slice_axis(call, sizes, 0, (0, start, 1))
    rest = slice_axis(call, sizes, 0, (end + 1, len(shape), 1))
    target_sizes = call.emit("Concat", head, call.ints([-1], "merged"), rest, axis=0)
    return call.emit("Reshape", call.x(), target_sizes)


def reshape(call: Call) -> str:
    return call.emit("Reshape", call.x(), call.ints(call.attrs.shape, "shape"))


def transpose(call: Call) -> str:
    rank = len(call.value().shape)
    axes = list(range(rank))
    first, second = axis_of(call.attrs.dim0, rank), axis_of(call.attrs.dim1, rank)
    axes[first], axes[second] = axes[second], axes[first]
    return call.emit("Transpose", call.x(), perm=axes)


def permute(call: Call) -> str:
    rank = len(call.value().shape)
    return call.emit("Transpose", call.x(), perm=[axis_of(dim, rank) for dim in call.attrs.dims])


def squeeze(call: Call) -> str:
    """Axes whose size is not 1 stay."""
    shape = call.value().shape
    axes = sorted({axis for dim in call.attrs.dim if shape[axis := axis_of(dim, len(shape))] == 1})
    return call.emit("Squeeze", call.x(), call.ints(axes, "axes")) if axes else call.x()


def unsqueeze(call: Call) -> str:
    axis = axis_of(call.attrs.dim, len(call.value().shape) + 1)
    return call.emit("Unsqueeze", call.x(), call.ints([axis], "axes"))


def slice_(call: Call) -> str:
    attrs = call.attrs
    end = TO_THE_END if attrs.end is None else attrs.end
    return slice_axis(call, call.x(), axis_of(attrs.dim, len(call.value().shape)), (attrs.start, end, attrs.step))


def slice_axis(call: Call, x: str, axis: int, span: tuple[int, int, int]) -> str:
    """x[start:end:step] along one axis."""
    start, end, step = span
    return call.emit(
        "Slice",
        x,
        call.ints([start], "starts"),
        call.ints([end], "ends"),
        call.ints([axis], "axes"),
        call.ints([step], "steps"),
    )


def split(call: Call) -> Sequence[str]:
    attrs = call.attrs
    axis = axis_of(attrs.dim, len(call.value().shape))
    sizes = call.ints(attrs.split_sizes, "sizes")
    return call.emit_all("Split", [call.x(), sizes], len(attrs.split_sizes), axis=axis)


def cat(call: Call) -> str:
    return call.emit("Concat", *call.all_inputs(), axis=axis_of(call.attrs.dim, len(call.value().shape)))


def same(call: Call) -> str:
    """The caller copies it under the output's name."""
    return call.x()


def pad_op(call: Call) -> str:
    attrs = call.attrs
    return pad(call, call.x(), len(call.value().shape), (pad_pairs(attrs), attrs.mode, attrs.value))


def pad(call: Call, x: str, rank: int, how: tuple[Padding, str, float]) -> str:
    """The last axes padded; ``how`` is a pair for each, the mode in PyTorch's words, and the value of "constant"."""
    pairs, mode, value = how
    onnx_mode = PAD_MODES[mode]
    if onnx_mode == "wrap" and call.opset < WRAP_SINCE:
        return _wrap(call, x, rank, pairs)
    full = [(0, 0)] * (rank - len(pairs)) + list(pairs)
    pads = call.ints([before for before, _ in full] + [after for _, after in full], "pads")
    constant = call.scalar(value, "value") if onnx_mode == "constant" else ""
    return call.emit("Pad", x, pads, constant, mode=onnx_mode)


def _wrap(call: Call, x: str, rank: int, pairs: Padding) -> str:
    """Wrapping around, by joining pieces."""
    for axis, (before, after) in enumerate(pairs, start=rank - len(pairs)):
        pieces = [slice_axis(call, x, axis, (-before, TO_THE_END, 1))] if before else []
        pieces.append(x)
        if after:
            pieces.append(slice_axis(call, x, axis, (0, after, 1)))
        if len(pieces) > 1:
            x = call.emit("Concat", *pieces, axis=axis)
    return x


def embedding(call: Call) -> str:
    return call.emit("Gather", call.x(1), call.x(0), axis=0)


def embedding_rows(call: Call) -> str:
    """scale * q + offset of the rows gathered, in float; two rows of 4 bits are taken out of each byte first."""
    ids = call.x(0)
    rows = call.emit("Cast", call.emit("Gather", call.x(1), ids, axis=0), to=call.value(2).dtype.value)
    if call.attrs.bits == 4:
        rows = _nibbles(call, rows)
    last = call.ints([-1], "last")
    scale, offset = (call.emit("Unsqueeze", call.emit("Gather", call.x(i), ids, axis=0), last) for i in (2, 3))
    return call.emit("Add", call.emit("Mul", rows, scale), offset)


def _nibbles(call: Call, rows: str) -> str:
    """Bytes (as floats) along the last axis -> the lower and the upper four bits of each, one after the other."""
    dtype, last = call.value(2).dtype.numpy, call.ints([-1], "last")
    sixteen = call.constant(np.asarray(16, dtype), "sixteen")
    upper = call.emit("Floor", call.emit("Div", rows, sixteen))
    lower = call.emit("Sub", rows, call.emit("Mul", upper, sixteen))
    pairs = call.emit("Concat", call.emit("Unsqueeze", lower, last), call.emit("Unsqueeze", upper, last), axis=-1)
    shape = call.ints([*([0] * len(call.value().shape)), -1], "shape")
    return slice_axis(call, call.emit("Reshape", pairs, shape), len(call.value().shape), (0, call.attrs.columns, 1))
