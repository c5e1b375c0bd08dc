"""Pools over any number of spatial axes, named and defined as ONNX has them: with dilation, ceil_mode and auto_pad."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, DType, TensorType
from qtool.ops import geometry
from qtool.ops.dims import UNKNOWN, need_float, need_integers, need_numbers, same_shape, spell
from qtool.ops.dynamic import as_ints, sizes_of
from qtool.ops.registry import Attrs, OpSpec, Vjp, VjpCall, register, require
from qtool.ops.vjp import Gradients, grad_of, gradients, unpad

Types = tuple[TensorType, ...]
Window = tuple[int, int, geometry.Pair, int]
"""Kernel, stride, padding and dilation along one axis."""


@dataclass(frozen=True)
class PoolAttrs(Attrs):
    """``pads`` has what lies before every axis, then what lies behind. Empty tuples are ones, and zeros."""

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    ceil_mode: bool = False
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"] = "NOTSET"


@dataclass(frozen=True)
class MaxPoolAttrs(PoolAttrs):
    """``storage_order`` 1 makes the indices those of pictures stored column by column."""

    storage_order: int = 0


@dataclass(frozen=True)
class AveragePoolAttrs(PoolAttrs):
    count_include_pad: bool = False


@dataclass(frozen=True)
class LpPoolAttrs(PoolAttrs):
    p: int = 2


@dataclass(frozen=True)
class GlobalLpPoolAttrs(Attrs):
    p: int = 2


@dataclass(frozen=True)
class MaxUnpoolAttrs(Attrs):
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()


def _window(attrs: PoolAttrs, axis: int, size: int) -> Window:
    rank = len(attrs.kernel_shape)
    kernel = attrs.kernel_shape[axis]
    stride = attrs.strides[axis] if attrs.strides else 1
    dilation = attrs.dilations[axis] if attrs.dilations else 1
    if attrs.auto_pad in ("NOTSET", "VALID"):
        pads = attrs.pads if attrs.pads and attrs.auto_pad == "NOTSET" else (0,) * (2 * rank)
        return kernel, stride, (pads[axis], pads[axis + rank]), dilation
    total = max((-(-size // stride) - 1) * stride + geometry.extent(kernel, dilation) - size, 0)
    small, large = total // 2, total - total // 2
    return kernel, stride, (small, large) if attrs.auto_pad == "SAME_UPPER" else (large, small), dilation


def _output(attrs: PoolAttrs, axis: int, size: Dim) -> Dim:
    if isinstance(size, str):
        return UNKNOWN
    kernel, stride, padding, dilation = _window(attrs, axis, size)
    if attrs.auto_pad.startswith("SAME"):
        return -(-size // stride)
    return geometry.pool_size(size, kernel, stride, padding, dilation, attrs.ceil_mode)


def _pool_type(attrs: PoolAttrs, x: TensorType) -> Types:
    rank = len(attrs.kernel_shape)
    require(rank >= 1 and len(x.shape) == rank + 2, f"x of shape {spell(x.shape)}", f"{rank} spatial axes")
    for name, values, count, low in (
        ("kernel_shape", attrs.kernel_shape, rank, 1),
        ("strides", attrs.strides, rank, 1),
        ("dilations", attrs.dilations, rank, 1),
        ("pads", attrs.pads, 2 * rank, 0),
    ):
        fits = len(values) in (0, count) and min(values, default=low) >= low
        require(fits, f"{name} {values}", f"{count} of at least {low}")
    sizes = tuple(_output(attrs, axis, size) for axis, size in enumerate(x.shape[2:]))
    fits = all(isinstance(size, str) or size > 0 for size in sizes)
    require(fits, f"a kernel of {attrs.kernel_shape} over {spell(x.shape[2:])}", "one that fits")
    return (TensorType(x.dtype, (*x.shape[:2], *sizes)),)


def _float_pool_type(attrs: PoolAttrs, x: TensorType) -> Types:
    need_float(x=x)
    return _pool_type(attrs, x)


def _max_pool_type(attrs: MaxPoolAttrs, x: TensorType) -> Types:
    need_numbers(x=x)
    (y,) = _pool_type(attrs, x)
    return (y, TensorType(DType.INT64, y.shape))


@dataclass(frozen=True)
class Plan:
    """How far an array is padded so that every window lies inside, and the windows as ``geometry.taps`` takes them."""

    padding: geometry.Padding
    windows: tuple[list[int], list[int], list[int], list[int]]


def _plan(attrs: PoolAttrs, sizes: Sequence[int]) -> Plan:
    windows = [_window(attrs, axis, size) for axis, size in enumerate(sizes)]
    out = [int(_output(attrs, axis, size)) for axis, size in enumerate(sizes)]
    padding = []
    for size, count, (kernel, stride, (before, _), dilation) in zip(sizes, out, windows, strict=True):
        reach = (count - 1) * stride + geometry.extent(kernel, dilation)
        padding.append((before, max(reach - size - before, 0)))
    kernels, strides = [window[0] for window in windows], [window[1] for window in windows]
    return Plan(tuple(padding), (kernels, strides, [window[3] for window in windows], out))


def _taps(attrs: PoolAttrs, x: Array, fill: float) -> Array:
    """(N, C, taps, *out): what lies under each tap of each window, ``fill`` outside of the data."""
    plan = _plan(attrs, x.shape[2:])
    return np.stack(list(geometry.taps(geometry.pad(x, plan.padding, value=fill), *plan.windows)), 2)


def _spread(attrs: PoolAttrs, x: Array, share: Callable[[Array], Array]) -> Array:
    """The sum of what each window gives to its elements: ``share`` makes it from what lies under one tap; float64."""
    plan = _plan(attrs, x.shape[2:])
    padded = geometry.pad(x.astype(np.float64), plan.padding)
    found = np.zeros(padded.shape)
    sources, targets = (geometry.taps(array, *plan.windows) for array in (padded, found))
    for under, target in zip(sources, targets, strict=True):
        np.add(target, share(under), out=target)
    return unpad(found, plan.padding)


def max_pool(attrs: MaxPoolAttrs, x: Array) -> tuple[Array, ...]:
    """The largest of each window, and its index among all elements of x."""
    lowest = -np.inf if x.dtype.kind == "f" else int(np.iinfo(x.dtype).min)
    taps = _taps(attrs, x, lowest)
    spatial = x.shape[2:]
    places = np.arange(math.prod(spatial)).reshape(spatial, order="F" if attrs.storage_order else "C")
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(spatial)) * math.prod(spatial)
    index_taps = _taps(attrs, np.asarray(places[None, None] + 1), 0) - 1  # -1 where there is no data
    # Data may be as low as the padding, which must not win against it: a column of its own decides.
    best = np.where(index_taps >= 0, taps.astype(np.float64), -np.inf).argmax(2)
    best = np.where(np.isneginf(taps.max(2)), (index_taps >= 0).argmax(2), best) if x.dtype.kind == "f" else best
    y = np.take_along_axis(taps, best[:, :, None], 2)[:, :, 0]
    grid = np.broadcast_to(index_taps, (*x.shape[:2], *index_taps.shape[2:]))
    return y, np.take_along_axis(grid, best[:, :, None], 2)[:, :, 0] + planes


def average_pool(attrs: AveragePoolAttrs, x: Array) -> tuple[Array, ...]:
    """Without ``count_include_pad`` only data are counted; with it also padding, but not what lies behind that."""
    sums = _taps(attrs, x.astype(np.float64), 0).sum(2)
    return (np.asarray(sums / _counts(attrs, x.shape[2:]), x.dtype),)


def _counts(attrs: AveragePoolAttrs, sizes: Sequence[int]) -> Array:
    """What the sum of each window is divided by; (1, 1, *out)."""
    ones = np.ones((1, 1, *sizes))
    counts = np.asarray(_taps(attrs, ones, 0).sum(2))
    if not attrs.count_include_pad:
        return counts
    windows = [_window(attrs, axis, size) for axis, size in enumerate(sizes)]
    padded = geometry.pad(ones, tuple(window[2] for window in windows), value=1)
    bare = AveragePoolAttrs(attrs.kernel_shape, attrs.strides, (), attrs.dilations, attrs.ceil_mode)
    return _cropped(_taps(bare, padded, 0).sum(2), counts.shape[2:])


def _cropped(x: Array, sizes: Sequence[int]) -> Array:
    return geometry.last_axes(x, [slice(size) for size in sizes])


def lp_pool(attrs: LpPoolAttrs, x: Array) -> tuple[Array, ...]:
    powers = np.abs(_taps(attrs, x.astype(np.float64), 0)) ** attrs.p
    return (np.asarray(powers.sum(2) ** (1 / attrs.p), x.dtype),)


def _global_type(attrs: GlobalLpPoolAttrs, x: TensorType) -> Types:
    need_float(x=x)
    require(len(x.shape) >= 3, f"x of shape {spell(x.shape)}", "at least one spatial axis")
    require(attrs.p >= 1, f"p {attrs.p}", "at least 1")
    return (TensorType(x.dtype, (*x.shape[:2], *(1 for _ in x.shape[2:]))),)


def global_lp_pool(attrs: GlobalLpPoolAttrs, x: Array) -> tuple[Array, ...]:
    powers = np.abs(x.astype(np.float64)) ** attrs.p
    return (np.asarray(powers.sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / attrs.p), x.dtype),)


def _unpool_type(
    attrs: MaxUnpoolAttrs, x: TensorType, indices: TensorType, output_shape: TensorType | None = None
) -> Types:
    need_integers(indices=indices)
    rank = len(attrs.kernel_shape)
    fits = len(x.shape) == rank + 2 and same_shape(x.shape, indices.shape)
    require(fits, f"x and indices of shapes {spell(x.shape)} and {spell(indices.shape)}", f"{rank} spatial axes")
    require(len(attrs.strides) in (0, rank) and len(attrs.pads) in (0, 2 * rank), "strides or pads", "one an axis")
    if output_shape is not None:
        shape = sizes_of("output_shape", output_shape)
        require(len(shape) == rank + 2, f"output_shape {spell(shape)}", f"{rank + 2} sizes")
        return (TensorType(x.dtype, shape),)
    sizes = tuple(UNKNOWN if isinstance(size, str) else _unpooled(attrs, i, size) for i, size in enumerate(x.shape[2:]))
    return (TensorType(x.dtype, (*x.shape[:2], *sizes)),)


def _unpooled(attrs: MaxUnpoolAttrs, axis: int, size: int) -> int:
    stride = attrs.strides[axis] if attrs.strides else 1
    pads = attrs.pads[axis] + attrs.pads[axis + len(attrs.kernel_shape)] if attrs.pads else 0
    return (size - 1) * stride + attrs.kernel_shape[axis] - pads


def max_unpool(attrs: MaxUnpoolAttrs, x: Array, indices: Array, output_shape: Array | None = None) -> tuple[Array, ...]:
    """Puts each element where it came from, by the sizes before pooling; they are the start of ``output_shape``."""
    natural = (*x.shape[:2], *(_unpooled(attrs, axis, size) for axis, size in enumerate(x.shape[2:])))
    y = np.zeros(math.prod(natural), x.dtype)
    if indices.size and not 0 <= indices.min() <= indices.max() < y.size:
        raise DataError(f"got indices from {indices.min()} to {indices.max()}, expected 0 to {y.size - 1}")
    y[indices.reshape(-1)] = x.reshape(-1)
    whole = y.reshape(natural)
    if output_shape is None:
        return (whole,)
    result = np.zeros(as_ints(output_shape), x.dtype)
    result[tuple(map(slice, natural))] = whole
    return (result,)


def _array(call: VjpCall) -> Array:
    x = call.inputs[0]
    assert x is not None
    return x


def max_pool_vjp(call: VjpCall) -> Gradients:
    """Each element that the second output names gets what the windows that chose it pass on."""
    x, (_, places) = _array(call), call.outputs

    def part() -> Array:
        found = np.bincount(places.reshape(-1), grad_of(call).reshape(-1), x.size)
        if not call.attrs.storage_order:
            return found.reshape(x.shape)
        return found.reshape(*x.shape[:2], *x.shape[:1:-1]).transpose(0, 1, *range(x.ndim - 1, 1, -1))

    return gradients(call, part)


def average_pool_vjp(call: VjpCall) -> Gradients:
    x = _array(call)
    return gradients(call, lambda: _spread(call.attrs, x, lambda _: grad_of(call) / _counts(call.attrs, x.shape[2:])))


def _norm_share(x: Array, grad: Array, norm: Array, p: int) -> Array:
    """By x of norm = (sum of abs(x) ** p) ** (1 / p); 0 where the norm is 0, as in PyTorch."""
    return np.where(norm == 0, 0, grad * np.sign(x) * (np.abs(x) / norm) ** (p - 1))


def lp_pool_vjp(call: VjpCall) -> Gradients:
    x, p, grad = _array(call), call.attrs.p, grad_of(call)
    return gradients(call, lambda: _spread(call.attrs, x, lambda under: _norm_share(under, grad, call.outputs[0], p)))


def global_lp_pool_vjp(call: VjpCall) -> Gradients:
    x = _array(call).astype(np.float64)
    return gradients(call, lambda: _norm_share(x, grad_of(call), call.outputs[0], call.attrs.p))


def max_unpool_vjp(call: VjpCall) -> Gradients:
    x, indices = _array(call), call.inputs[1]
    assert indices is not None

    def part() -> Array:
        sizes = [_unpooled(call.attrs, axis, size) for axis, size in enumerate(x.shape[2:])]
        whole = grad_of(call)[tuple(map(slice, (*x.shape[:2], *sizes)))]
        return whole.reshape(-1)[indices]

    return gradients(call, part)


def _register(
    onnx: str,
    attrs: type[Attrs],
    infer: Callable[..., Types],
    function: Callable[..., tuple[Array, ...]],
    vjp: Vjp,
    inputs: tuple[str, ...] = ("x",),
) -> None:
    register(OpSpec(function.__name__, attrs, inputs, infer, function, onnx=(onnx,), vjp=vjp))


_register("MaxPool", MaxPoolAttrs, _max_pool_type, max_pool, max_pool_vjp)
_register("AveragePool", AveragePoolAttrs, _float_pool_type, average_pool, average_pool_vjp)
_register("LpPool", LpPoolAttrs, _float_pool_type, lp_pool, lp_pool_vjp)
_register("GlobalLpPool", GlobalLpPoolAttrs, _global_type, global_lp_pool, global_lp_pool_vjp)
_register("MaxUnpool", MaxUnpoolAttrs, _unpool_type, max_unpool, max_unpool_vjp, ("x", "indices", "output_shape?"))
