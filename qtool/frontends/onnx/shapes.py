"""Converters of operators that move, select or join values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qtool.errors import ModelError
from qtool.frontends.onnx.body import LARGEST_FOLD
from qtool.frontends.onnx.call import Call
from qtool.frontends.onnx.known import Known, Unsupported, constant_of
from qtool.frontends.onnx.simple import attrs_for
from qtool.ir import Attr, Dim, DType
from qtool.ops.dims import divide, product

INDEX = np.int64


def vector(numbers: Sequence[int]) -> Known:
    return constant_of(np.array(numbers, INDEX))


def constant(call: Call) -> Known:
    for name, value in call.attrs.items():
        if name == "value":
            return constant_of(value, call.outputs[0])
        if name in ("value_float", "value_floats"):
            return constant_of(np.array(value, np.float32), call.outputs[0])
        if name in ("value_int", "value_ints"):
            return constant_of(np.array(value, INDEX), call.outputs[0])
    raise Unsupported(f"it is a constant of {', '.join(call.attrs) or 'nothing'}")


def constant_of_shape(call: Call) -> Known:
    value = call.attr("value")
    item = np.zeros(1, np.float32) if value is None else np.asarray(value).reshape(-1)
    shape = call.ints(0, "shape") if call.x().array is not None else None
    if shape is not None and min(shape, default=0) >= 0 and math.prod(shape) <= LARGEST_FOLD:
        return constant_of(np.full(shape, item[0], item.dtype))
    return call.emit("constant_of_shape", [call.x()], value=item[0].item(), dtype=DType.of(item).value)


def reshape(call: Call) -> Known:
    """A list of numbers with at most one -1 where possible; 0 copies a size, a symbol becomes the -1."""
    x = call.x()
    given: Sequence[Dim] | None = tuple(call.attrs["shape"]) if "shape" in call.attrs else call.sizes(1)
    allowzero = bool(call.attr("allowzero"))
    if given is not None:
        target = _target(x, given, allowzero)
        if target is not None:
            return x if target == x.shape else call.emit("reshape", [x], shape=target)
    shape = call.get(1) or vector([int(n) for n in call.attrs["shape"]])
    return call.emit("reshape_to", [x, shape], allowzero=allowzero)


def _target(x: Known, given: Sequence[Dim], allowzero: bool) -> tuple[int, ...] | None:
    """The numbers, at most one of them -1; None where they cannot be known, or a size is 0."""
    if any(n == 0 and (allowzero or i >= x.rank) for i, n in enumerate(given)) or 0 in x.shape:
        return None
    sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(given)]
    total = product(x.shape)
    if -1 in sizes:
        rest = divide(total, product(n for n in sizes if n != -1))
        if rest is None or sizes.count(-1) != 1:
            return None
        sizes[sizes.index(-1)] = rest
    unknown = [i for i, n in enumerate(sizes) if isinstance(n, str)]
    if len(unknown) > 1 or divide(total, product(sizes)) != 1:
        return None
    return tuple(-1 if isinstance(n, str) else n for n in sizes)


def flatten(call: Call) -> Known:
    axis = int(call.attr("axis", 1))
    if axis % max(call.x().rank, 1) == 1 and call.x().rank >= 2:
        return call.emit("flatten", [call.x()])
    return call.emit("flatten_to", [call.x()], axis=axis)


def transpose(call: Call) -> Known:
    rank = call.x().rank
    perm = tuple(call.attr("perm") or range(rank)[::-1])
    return call.x() if perm == tuple(range(rank)) else call.emit("permute", [call.x()], dims=perm)


def _axes(call: Call, position: int = 1) -> tuple[int, ...] | None:
    """Axes as an attribute or a constant input; None where there are none."""
    if call.attr("axes") is not None:
        return tuple(call.attrs["axes"])
    return call.ints(position, "axes") if call.get(position) is not None else None


def _dynamic(call: Call, *positions: int) -> bool:
    return any((known := call.get(position)) is not None and known.array is None for position in positions)


def squeeze(call: Call) -> Known:
    x = call.x()
    if _dynamic(call, 1):
        return call.emit("squeeze_to", call.inputs)
    axes = _axes(call)
    if axes is None:
        axes = tuple(axis for axis, size in enumerate(x.shape) if size == 1)
    if any(isinstance(x.shape[axis], str) for axis in axes):
        return call.emit("squeeze_to", [x, vector(axes)])
    return call.emit("squeeze", [x], dim=axes) if axes else x


def unsqueeze(call: Call) -> Known:
    if _dynamic(call, 1):
        return call.emit("unsqueeze_to", call.inputs)
    x, axes = call.x(), _axes(call) or ()
    rank = x.rank + len(axes)
    places = sorted(axis % rank for axis in axes)
    if len(set(places)) != len(places) or any(not -rank <= axis < rank for axis in axes):
        raise ModelError(f"got axes {axes} for rank {x.rank}")
    for axis in places:
        x = call.emit("unsqueeze", [x], dim=axis)
    return x


def slice_(call: Call) -> Known:
    """A slice an axis, where starts, ends and steps are constants and something is left."""
    x, names = call.x(), ("starts", "ends", "axes", "steps")
    if "starts" in call.attrs:
        limits = [tuple(call.attrs[name]) if name in call.attrs else None for name in names]
    elif _dynamic(call, 1, 2, 3, 4):
        return call.emit("slice_to", call.inputs)
    else:
        limits = [call.ints(i + 1, name) for i, name in enumerate(names)]
    starts, ends = (limit or () for limit in limits[:2])
    axes, steps = limits[2] or tuple(range(len(starts))), limits[3] or (1,) * len(starts)
    spans = list(zip((axis % max(x.rank, 1) for axis in axes), starts, ends, steps, strict=True))
    if not all(_is_plain_span(x.shape[axis], *span) for axis, *span in spans):
        return call.emit("slice_to", [x, *map(vector, (starts, ends, axes, steps))])
    for axis, start, end, step in spans:
        size = x.shape[axis]
        far = end >= (size if isinstance(size, int) else 2**31 - 1)
        if start == 0 and far and step == 1:
            continue
        x = call.emit("slice", [x], dim=axis, start=start, end=None if far else end, step=step)
    return x


def _is_plain_span(size: Dim, start: int, end: int, step: int) -> bool:
    if step < 1 or isinstance(size, str):
        return step >= 1 and (start, step) == (0, 1) and end >= 2**31 - 1
    return len(range(*slice(start, end, step).indices(size))) > 0


def split(call: Call) -> Sequence[Known]:
    x, axis, count = call.x(), int(call.attr("axis", 0)), len(call.outputs)
    size = x.shape[axis]
    if _dynamic(call, 1) or isinstance(size, str):
        return call.emit_all("split_to", call.inputs, count, axis=axis, outputs=count)
    given = tuple(call.attrs["split"]) if "split" in call.attrs else call.ints(1, "split")
    if given is None:
        chunk = -(-size // count)
        given = tuple(max(min(chunk, size - i * chunk), 0) for i in range(count))
    if min(given, default=0) < 1:
        return call.emit_all("split_to", [x, vector(given)], count, axis=axis, outputs=count)
    return (x,) if len(given) == 1 else call.emit_all("split", [x], count, split_sizes=given, dim=axis)


def concat(call: Call) -> Known:
    known = [call.x(i) for i in range(len(call.inputs))]
    full = [k for k in known if 0 not in k.shape] or known[:1]  # what is empty adds nothing
    return full[0] if len(full) == 1 else call.emit("cat", full, dim=int(call.attr("axis", 1)))


MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad(call: Call) -> Known:
    """Constant pads of a float tensor as PyTorch's pad; none at all as nothing."""
    x, mode = call.x(), call.attr("mode", "constant")
    old = call.attrs.get("pads", call.attrs.get("paddings"))
    if old is not None:
        pads, value, axes = tuple(old), float(call.attr("value", 0.0)), tuple(range(x.rank))
    elif _dynamic(call, 1, 2, 3):
        return call.emit("pad_to", call.inputs, mode=mode)
    else:
        pads = call.ints(1, "pads") or ()
        given = call.array(2, "value")
        value = 0.0 if given is None else float(given.reshape(-1)[0])
        axes = call.ints(3, "axes") or tuple(range(x.rank))
    if not any(pads):
        return x
    pairs = dict.fromkeys(range(x.rank), (0, 0))
    for i, axis in enumerate(axes):
        pairs[axis % x.rank] = (pads[i], pads[i + len(axes)])
    if x.dtype is not DType.FLOAT32 or not _can_pad(x, pairs, mode, value):
        return call.emit("pad_to", call.inputs if old is None else [x, vector(pads)], mode=mode)
    first = next(axis for axis in range(x.rank) if any(pairs[axis]))
    flat = tuple(n for axis in range(x.rank - 1, first - 1, -1) for n in pairs[axis])
    return call.emit("pad", [x], pad=flat, mode=MODES[mode], value=value)


def _can_pad(x: Known, pairs: dict[int, tuple[int, int]], mode: str, value: float) -> bool:
    """Whether PyTorch's pad does the same: no axis of unknown size, and never more than there is to mirror."""
    if not math.isfinite(value) or mode not in MODES:
        return False
    for axis, pair in pairs.items():
        size = x.shape[axis]
        if any(pair) and (isinstance(size, str) or (min(pair) < 0 and (mode != "constant" or size + sum(pair) < 1))):
            return False
        spare = {"reflect": 1, "wrap": 0}.get(mode)
        if spare is not None and isinstance(size, int) and max(pair) > size - spare:
            return False
    return True


def expand(call: Call) -> Known:
    x, sizes = call.x(), call.sizes(1)
    if sizes is not None and len(sizes) <= x.rank:
        tail = x.shape[x.rank - len(sizes) :]
        if all(wanted in (1, size) for wanted, size in zip(sizes, tail, strict=True)):
            return x
    return call.emit("expand", call.inputs)


def gather(call: Call) -> Known:
    """Rows of a constant table are an embedding; one constant place of a known axis is a slice."""
    data, indices, axis = call.x(), call.x(1), int(call.attr("axis", 0))
    is_table = data.array is not None and data.rank == 2 and data.dtype is DType.FLOAT32
    if is_table and axis in (0, -2) and indices.array is None:
        return call.emit("embedding", [indices, data])
    size = data.shape[axis] if -data.rank <= axis < data.rank else "?"
    if data.array is None and indices.array is not None and indices.rank == 0 and isinstance(size, int):
        place = int(indices.array)
        if not -size <= place < size:
            raise ModelError(f"got index {place} for an axis of size {size}")
        part = call.emit("slice", [data], dim=axis % data.rank, start=place % size, end=place % size + 1)
        return call.emit("squeeze", [part], dim=(axis % data.rank,))
    return call.emit("gather", [data, indices], axis=axis)


def resize(call: Call) -> Known:
    """Opset 10 and Upsample have only scales, and their own rule for coordinates."""
    x, attrs = call.x(), attrs_for(call, "resize") if call.op == "Resize" else {"mode": call.attr("mode", "nearest")}
    if call.op == "Upsample" or call.opset < 11:
        scales = call.get(1)
        if scales is None:
            scales = constant_of(np.array(call.attrs["scales"], np.float32))
        old: dict[str, Attr] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return call.emit("resize", [x, None, scales], **{**attrs, **old})
    roi, scales_in, sizes_in = (_not_empty(call.get(i)) for i in (1, 2, 3))
    if sizes_in is not None and attrs.get("axes") is None:
        known = call.sizes(3)
        if known is not None and sizes_in.array is None:
            kept = [i for i, n in enumerate(known) if n != x.shape[i]]
            if all(isinstance(known[i], int) for i in kept):
                attrs["axes"], sizes_in = tuple(kept), vector([int(known[i]) for i in kept])
                roi = None
    return call.emit("resize", [x, roi, scales_in, sizes_in], **attrs)


def _not_empty(known: Known | None) -> Known | None:
    return None if known is None or 0 in known.shape else known


def identity(call: Call) -> Known:
    return call.x()
