"""Converters of operators that move, select or join elements, or make tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qtool.frontends.torch.call import Call, Convert
from qtool.frontends.torch.maths import operands
from qtool.frontends.torch.sizes import expression
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.ir import DType

TO_THE_END = 2**63 - 1
MOST_ELEMENTS = 1 << 24
"""Larger tensors of one number are made at run time."""


def view(call: Call) -> Known:
    """Reshapes of every kind: torch tells the result's shape."""
    x, (_, shape) = call.x("self|input"), call.output()
    if x.shape == shape:
        return x
    return call.reshape(x, call.result.shape)


def flatten(call: Call) -> Known:
    return call.emit("flatten", [call.x()], start_dim=call.integer("start_dim", 0), end_dim=call.integer("end_dim", -1))


def permute(call: Call) -> Known:
    dims = tuple(axis % len(call.integers("dims")) for axis in call.integers("dims"))
    return _turned(call, call.x(), 0, 1) if dims == (1, 0) else call.emit("permute", [call.x()], dims=dims)


def transpose(call: Call) -> Known:
    x = call.x()
    return _turned(call, x, call.integer("dim0"), call.integer("dim1"))


def turn(call: Call) -> Known:
    """``t``: of vectors nothing changes."""
    x = call.x()
    return x if x.rank < 2 else _turned(call, x, 0, 1)


def _turned(call: Call, x: Known, first: int, second: int) -> Known:
    if x.array is not None and x.rank == 2 and first % 2 != second % 2:
        return Known(x.dtype, x.shape[::-1], array=np.ascontiguousarray(x.array.T), turned=x)
    return call.emit("transpose", [x], dim0=first, dim1=second)


def matrix_turn(call: Call) -> Known:
    """``mT``: the last two axes change places."""
    return _turned(call, call.x(), -2, -1)


def reverse(call: Call) -> Known:
    """``T``: all axes backwards."""
    x = call.x()
    return turn(call) if x.rank <= 2 else call.emit("permute", [x], dims=tuple(range(x.rank))[::-1])


def squeeze(call: Call) -> Known:
    """Only axes of size 1 are dropped; torch has looked which are."""
    x = call.x()
    dims = call.args.get("dim")
    asked = range(x.rank) if dims is None else [axis % max(x.rank, 1) for axis in call.integers("dim")]
    axes = tuple(axis for axis in asked if axis < x.rank and x.shape[axis] == 1)
    return call.emit("squeeze", [x], dim=axes) if axes else x


def unsqueeze(call: Call) -> Known:
    return call.emit("unsqueeze", [call.x()], dim=call.integer("dim"))


def expand(call: Call) -> Known:
    """Sizes that stay are 1 in the shape given to the operator, which broadcasts."""
    x, (_, shape) = call.x(), call.output()
    if x.shape == shape:
        return x
    old = (1,) * (len(shape) - x.rank) + x.shape
    sizes = [1 if a == b else size for a, b, size in zip(old, shape, call.result.shape, strict=True)]
    return call.emit("expand", [x, call.vector(sizes)])


def repeat(call: Call) -> Known:
    x, times = call.x(), list(call.get("repeats"))
    x = call.reshape(x, [1] * (len(times) - x.rank) + list(x.shape), emit=False) if len(times) > x.rank else x
    return call.emit("tile", [x, call.vector(times)])


def select(call: Call) -> Known:
    x, axis = call.x(), call.integer("dim") % call.x().rank
    index = call.args["index"]
    if not isinstance(index, int) or not isinstance(x.shape[axis], int):
        return call.emit("gather", [x, call.scalar(index, DType.INT64)], axis=axis)
    start = index % int(x.shape[axis])
    part = call.emit("slice", [x], dim=axis, start=start, end=start + 1)
    return call.helper("squeeze", [part], dim=(axis,))


def slice_(call: Call) -> Known:
    x, axis, step = call.x(), call.integer("dim", 0) % call.x().rank, call.integer("step", 1)
    start, end = (_bound(call.get(name, default)) for name, default in (("start", 0), ("end", TO_THE_END)))
    if isinstance(start, int) and isinstance(end, int):
        if (start, end, step) == (0, TO_THE_END, 1) or x.shape == call.output()[1]:
            return x
        last = None if end == TO_THE_END else end
        return call.emit("slice", [x], dim=axis, start=start, end=last, step=step)
    if x.shape == call.output()[1] and step == 1:
        return x
    numbers = [call.vector([item]) for item in (start, end)]
    places = [constant_of(np.array([item], np.int64)) for item in (axis, step)]
    return call.emit("slice_to", [x, *numbers, *places])


def _bound(value: Any) -> Any:
    """An int where it is one; ends behind every tensor are all the same."""
    expr = expression(value)
    if not isinstance(expr, int):
        return value
    return TO_THE_END if expr >= 2**31 else expr


def split(call: Call) -> Sequence[Known]:
    """split, chunk, split_with_sizes: torch tells the sizes of the parts."""
    axis = call.integer("dim", 0)
    sizes = [part.shape[axis] for part in call.result]
    known = tuple(size for size in map(expression, sizes) if isinstance(size, int))
    if len(sizes) == 1:
        return [call.x()]
    if len(known) == len(sizes) and 0 not in known:
        return call.emit_all("split", [call.x()], len(sizes), split_sizes=known, dim=axis)
    return call.emit_all("split_to", [call.x(), call.vector(sizes)], len(sizes), axis=axis, outputs=len(sizes))


def unbind(call: Call) -> Sequence[Known]:
    x, axis = call.x(), call.integer("dim", 0)
    parts = [x]
    if len(call.result) > 1:
        parts = call.emit_all("split", [x], len(call.result), split_sizes=(1,) * len(call.result), dim=axis)
    return [call.helper("squeeze", [part], dim=(axis,)) for part in parts]


def _tensors(call: Call) -> list[Known]:
    dtype = call.output()[0]
    found = [known for known in call.args["tensors"] if isinstance(known, Known)]
    return [call.cast(known, dtype) for known in found if known.shape != (0,)]  # torch ignores empty vectors


def cat(call: Call) -> Known:
    parts = _tensors(call)
    return parts[0] if len(parts) == 1 else call.emit("cat", parts, dim=call.integer("dim", 0))


def stack(call: Call) -> Known:
    axis = call.integer("dim", 0)
    parts = [call.helper("unsqueeze", [part], dim=axis) for part in _tensors(call)]
    return parts[0] if len(parts) == 1 else call.emit("cat", parts, dim=axis)


def flip(call: Call) -> Known:
    x, axes = call.x(), call.integers("dims")
    vectors = [[-1] * len(axes), [-TO_THE_END] * len(axes), list(axes), [-1] * len(axes)]
    return call.emit("slice_to", [x, *(constant_of(np.array(vector, np.int64)) for vector in vectors)])


def roll(call: Call) -> Known:
    x, shifts, axes = call.x(), call.integers("shifts"), call.integers("dims")
    if not axes:
        raise Unsupported("it rolls over all axes at once")
    for shift, axis in zip(shifts, axes, strict=True):
        size = x.shape[axis]
        places = shift if not isinstance(size, int) else shift % size
        if places:
            tail = call.helper("slice", [x], dim=axis, start=-places)
            x = call.emit("cat", [tail, call.helper("slice", [x], dim=axis, end=-places)], dim=axis)
    return x


def slice_scatter(call: Call) -> Known:
    """x with x[start:end] along one axis replaced: what functional programs make of an assignment."""
    x, source = call.x(), call.x("src")
    axis, size = call.integer("dim", 0), call.x().shape[call.integer("dim", 0)]
    start, end = call.integer("start", 0), min(call.integer("end", TO_THE_END), TO_THE_END)
    if call.integer("step", 1) != 1:
        raise Unsupported("it writes to every second or later element")
    if x.shape == source.shape:
        return call.cast(source, x.dtype)
    if not isinstance(size, int):
        raise Unsupported("the size of the axis it writes to depends on the input")
    start, end, _ = slice(start, end).indices(size)
    return _replaced(call, source, axis, (start, end))


def select_scatter(call: Call) -> Known:
    """x with x[index] along one axis replaced."""
    axis, size = call.integer("dim"), call.x().shape[call.integer("dim")]
    if not isinstance(size, int):
        raise Unsupported("the size of the axis it writes to depends on the input")
    index = call.integer("index") % size
    return _replaced(call, call.helper("unsqueeze", [call.x("src")], dim=axis), axis, (index, index + 1))


def _replaced(call: Call, source: Known, axis: int, span: tuple[int, int]) -> Known:
    x = call.x()
    parts = [call.cast(source, x.dtype)]
    if span[0] > 0:
        parts.insert(0, call.helper("slice", [x], dim=axis, start=0, end=span[0]))
    if span[1] < int(x.shape[axis]):
        parts.append(call.helper("slice", [x], dim=axis, start=span[1]))
    return call.emit("cat", parts, dim=axis) if len(parts) > 1 else parts[0]


def copy(call: Call) -> Known:
    """The numbers of ``src`` in the shape and type of x."""
    source, (dtype, shape) = call.x("src"), call.output()
    source = call.cast(source, dtype)
    return source if source.shape == shape else call.emit("expand", [source, call.vector(call.result.shape)])


# look-up


def embedding(call: Call) -> Known:
    return call.emit("embedding", [call.x("indices"), call.x("weight")])


def index_select(call: Call) -> Known:
    return call.emit("gather", [call.x(), call.x("index")], axis=call.integer("dim"))


def gather(call: Call) -> Known:
    return call.emit("gather_elements", [call.x(), call.x("index")], axis=call.integer("dim"))


def index(call: Call) -> Known:
    """x[indices]: along one axis, or along the first ones together."""
    x, indices = call.x(), list(call.args["indices"])
    axes = [axis for axis, known in enumerate(indices) if known is not None]
    if any(indices[axis].dtype is DType.BOOL for axis in axes):
        raise Unsupported("it selects by a mask: the size of the result depends on the numbers in a tensor")
    found = [call.cast(indices[axis], DType.INT64) for axis in axes]
    if len(axes) == 1:
        return call.emit("gather", [x, found[0]], axis=axes[0])
    if axes != list(range(len(axes))):
        raise Unsupported(f"it indexes the axes {axes} together")
    shape = np.broadcast_shapes(*(tuple(1 if isinstance(d, str) else d for d in known.shape) for known in found))
    if any(known.shape != shape for known in found):
        zero = call.constant(0, DType.INT64)
        whole = zero
        for known in found:
            whole = call.helper("mul", [call.helper("add", [whole, known]), zero])
        found = [call.helper("add", [known, whole]) for known in found]
    last = [call.helper("unsqueeze", [known], dim=-1) for known in found]
    return call.emit("gather_nd", [x, call.helper("cat", last, dim=-1)])


# padding and sampling


def pad(mode: str = "") -> Convert:
    """Padding of the last axes; ``mode`` where the operator's name says it."""

    def convert(call: Call) -> Known:
        name = "pad" if "pad" in call.args else "padding"
        kind = mode or str(call.get("mode", "constant"))
        value = float(call.get("value", 0.0) or 0.0)
        x = call.x()
        if x.dtype.is_float:
            return call.emit("pad", [x], pad=call.integers(name), mode=kind, value=value)
        if kind != "constant":
            raise Unsupported(f"it pads {x.dtype.value} in the mode {kind}")
        widths = call.integers(name)
        pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)][::-1]
        pairs = [(0, 0)] * (x.rank - len(pairs)) + pairs
        flat = [before for before, _ in pairs] + [after for _, after in pairs]
        return call.emit("pad_to", [x, constant_of(np.array(flat, np.int64)), call.constant(value, x.dtype)])

    return convert


def pixel_shuffle(call: Call) -> Known:
    return call.emit("depth_to_space", [call.x()], blocksize=call.integer("upscale_factor"), mode="CRD")


def pixel_unshuffle(call: Call) -> Known:
    """Channels first within each block: space_to_depth has them last."""
    x, factor = call.x(), call.integer("downscale_factor")
    n, c, h, w = x.shape
    if not all(isinstance(dim, int) for dim in (c, h, w)):
        raise Unsupported("sizes besides the batch depend on the input")
    rows, columns = int(h) // factor, int(w) // factor
    y = call.reshape(x, [n, c, rows, factor, columns, factor], emit=False)
    y = call.emit("permute", [y], dims=(0, 1, 3, 5, 2, 4))
    return call.reshape(y, [n, int(c) * factor * factor, rows, columns], emit=False)


def upsample(mode: str, nearest_mode: str = "floor") -> Convert:
    """interpolate: to sizes torch tells, or by factors where these decide where pixels are taken from."""

    def convert(call: Call) -> Known:
        x, spatial = call.x("input|self"), call.x("input|self").rank - 2
        align = bool(call.get("align_corners", False))
        default = "pytorch_half_pixel" if mode != "nearest" else "asymmetric"
        if nearest_mode == "round_prefer_floor":
            default = "half_pixel"
        where = "align_corners" if align else default
        factors = call.get("scale_factors")
        more: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": where, "axes": tuple(range(2, x.rank))}
        if mode == "nearest":
            more["nearest_mode"] = nearest_mode
        if mode == "cubic":
            more["cubic_coeff_a"] = -0.75
        if factors is not None:
            scales = constant_of(np.array(factors, np.float32))
            return call.emit("resize", [x, None, scales], **more)
        sizes = call.vector(list(call.result.shape)[-spatial:])
        return call.emit("resize", [x, None, None, sizes], **more)

    return convert


def grid_sample(call: Call) -> Known:
    """torch counts the modes."""
    modes, paddings = ("linear", "nearest", "cubic"), ("zeros", "border", "reflection")
    return call.emit(
        "grid_sample",
        [call.x("input"), call.x("grid")],
        mode=modes[call.integer("interpolation_mode", 0)],
        padding_mode=paddings[call.integer("padding_mode", 0)],
        align_corners=bool(call.get("align_corners", False)),
    )


def einsum(call: Call) -> Known:
    return call.emit("einsum", list(call.args["tensors"]), equation=str(call.args["equation"]))


def triangle(upper: bool) -> Convert:
    def convert(call: Call) -> Known:
        offset = constant_of(np.array(call.integer("diagonal", 0), np.int64))
        return call.emit("trilu", [call.x(), offset], upper=upper)

    return convert


# new tensors


def filled(number: bool | float | None = None) -> Convert:
    """zeros, ones, full and those like another tensor."""

    def convert(call: Call) -> Known:
        value = call.args.get("fill_value") if number is None else number
        if isinstance(value, Known):
            value = None if value.array is None else value.array.item()
        if not isinstance(value, (bool, int, float)):
            raise Unsupported(f"it fills a tensor with {value}")
        dtype, shape = call.output()
        sizes = [dim for dim in shape if isinstance(dim, int)]
        value = dtype.numpy.type(value).item()
        if len(sizes) == len(shape) and math.prod(sizes) <= MOST_ELEMENTS:
            return constant_of(np.full(sizes, value, dtype.numpy))
        return Known(dtype, shape, fill=value)

    return convert


def scalar_tensor(call: Call) -> Known:
    return operands(call, "s")[0]


def arange(call: Call) -> Known:
    dtype = call.output()[0]
    start, end, step = (call.get(name, default) for name, default in (("start", 0), ("end", 0), ("step", 1)))
    if all(not isinstance(item, torch.SymInt) for item in (start, end, step)):
        array = torch.arange(start, end, step, dtype=getattr(torch, dtype.value)).numpy()
        return constant_of(array)
    return call.emit("range", [_number(call, item, dtype) for item in (start, end, step)])


def _number(call: Call, value: Any, dtype: DType) -> Known:
    return call.scalar(value, dtype) if isinstance(value, torch.SymInt) else call.constant(value, dtype)
