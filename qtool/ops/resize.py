"""Pictures of another size, defined as ONNX has it: one axis after another, by a matrix of weights each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, Shape, TensorType
from qtool.ops.dims import UNKNOWN, axes_of, need_float, need_integers, need_numbers, spell
from qtool.ops.dynamic import as_ints, ints_of, length_of
from qtool.ops.generate import checked_size
from qtool.ops.registry import Attrs, OpSpec, QuantRule, VjpCall, register, require
from qtool.ops.vjp import Gradients, add_along, apply_along, grad_of, gradients


@dataclass(frozen=True)
class ResizeAttrs(Attrs):
    """ONNX ``Resize``; ``axes`` None means all of them. Either scales or sizes are given."""

    mode: Literal["nearest", "linear", "cubic"] = "nearest"
    coordinate_transformation_mode: Literal[
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "tf_crop_and_resize",
    ] = "half_pixel"
    nearest_mode: Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    extrapolation_value: float = 0.0
    antialias: bool = False
    axes: tuple[int, ...] | None = None
    keep_aspect_ratio_policy: Literal["stretch", "not_larger", "not_smaller"] = "stretch"


@dataclass(frozen=True)
class Axis:
    """One axis to resize: its size, the new one, the scale, and the part to crop (with ``tf_crop_and_resize``)."""

    size: int
    out: int
    scale: float
    crop: tuple[float, float] = (0.0, 1.0)


def resize_type(
    attrs: ResizeAttrs,
    x: TensorType,
    roi: TensorType | None = None,
    scales: TensorType | None = None,
    sizes: TensorType | None = None,
) -> tuple[TensorType, ...]:
    need_numbers(x=x)
    need_float(scales=scales)
    need_integers(sizes=sizes)
    rank = len(x.shape)
    axes = tuple(range(rank)) if attrs.axes is None else axes_of(attrs.axes, rank)
    given = scales if sizes is None else sizes
    both = f"scales {scales is not None} and sizes {sizes is not None}"
    require((scales is None) is not (sizes is None) and given is not None, both, "one of them")
    assert given is not None
    got = f"scales or sizes of shape {spell(given.shape)}"
    require(len(given.shape) == 1 and given.shape[0] in (len(axes), UNKNOWN), got, f"({len(axes)})")
    shape = list(x.shape)
    new = _new_sizes(attrs, [x.shape[axis] for axis in axes], scales, sizes)
    for axis, size in zip(axes, new, strict=True):
        shape[axis] = size
    require(roi is None or len(roi.shape) == 1, "roi", "one axis")
    return (TensorType(x.dtype, tuple(shape)),)


def _new_sizes(
    attrs: ResizeAttrs, old: Sequence[Dim], scales: TensorType | None, sizes: TensorType | None
) -> Sequence[Dim]:
    unknown: Shape = (UNKNOWN,) * len(old)
    known_ones = [size for size in old if isinstance(size, int)]
    if sizes is not None:
        length_of("sizes", sizes)
        wanted = ints_of(sizes)
        if wanted is None or (attrs.keep_aspect_ratio_policy != "stretch" and len(known_ones) < len(old)):
            return unknown
        require(min(wanted, default=0) >= 0, f"sizes {wanted}", "at least 0")
        return [axis.out for axis in _by_sizes(attrs, known_ones, wanted)] if len(known_ones) == len(old) else wanted
    factors = None if scales is None or scales.value is None else scales.value.reshape(-1)
    if factors is None:
        return unknown
    require(bool((factors > 0).all() and np.isfinite(factors).all()), f"scales {factors}", "more than 0")
    return [
        math.floor(size * float(factor)) if isinstance(size, int) else size if factor == 1 else UNKNOWN
        for size, factor in zip(old, factors, strict=True)
    ]


def _by_sizes(attrs: ResizeAttrs, old: Sequence[int], wanted: Sequence[int]) -> list[Axis]:
    ratios = [new / max(size, 1) for new, size in zip(wanted, old, strict=True)]
    if attrs.keep_aspect_ratio_policy == "stretch":
        return [Axis(size, new, ratio) for size, new, ratio in zip(old, wanted, ratios, strict=True)]
    ratio = min(ratios) if attrs.keep_aspect_ratio_policy == "not_larger" else max(ratios)
    return [Axis(size, math.floor(ratio * size + 0.5), ratio) for size in old]


def _plan(attrs: ResizeAttrs, old: Sequence[int], scales: Array | None, sizes: Array | None) -> list[Axis]:
    if sizes is not None:
        return _by_sizes(attrs, old, as_ints(sizes))
    if scales is None:
        raise DataError("got neither scales nor sizes")
    factors = [float(factor) for factor in scales.reshape(-1)]
    return [Axis(size, math.floor(size * factor), factor) for size, factor in zip(old, factors, strict=True)]


def _axes(attrs: ResizeAttrs, rank: int) -> tuple[int, ...]:
    return tuple(range(rank)) if attrs.axes is None else tuple(axis % rank for axis in attrs.axes)


def nearest_pixels(
    attrs: ResizeAttrs, shape: Sequence[int], scales: Array | None, sizes: Array | None
) -> dict[int, Array]:
    """For each axis the old pixel that each new one is, int64; for mode nearest without crops."""
    axes = _axes(attrs, len(shape))
    plan = _plan(attrs, [shape[axis] for axis in axes], scales, sizes)
    return {number: _picked(attrs, axis, coordinates(attrs, axis)) for number, axis in zip(axes, plan, strict=True)}


def _picked(attrs: ResizeAttrs, axis: Axis, points: Array) -> Array:
    return nearest(points, attrs.nearest_mode).clip(0, axis.size - 1)


def resize(
    attrs: ResizeAttrs, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> tuple[Array, ...]:
    plan = _cropped(attrs, x, roi, scales, sizes)
    checked_size(tuple(axis.out for axis in plan.values()))
    crops = attrs.coordinate_transformation_mode == "tf_crop_and_resize"
    y = x if attrs.mode == "nearest" else x.astype(np.float64)
    for number, axis in plan.items():
        y = _resized(attrs, y, number, axis, coordinates(attrs, axis))
    outside = _outside(attrs, plan, x.ndim) if crops else None
    if y.dtype != x.dtype:
        y = np.rint(y) if x.dtype.kind != "f" else y
    y = y if outside is None else np.where(outside, attrs.extrapolation_value, y)
    return (np.asarray(y, x.dtype),)


def _cropped(
    attrs: ResizeAttrs, x: Array, roi: Array | None, scales: Array | None, sizes: Array | None
) -> dict[int, Axis]:
    """The axes to resize by their numbers, with the crops that ``roi`` asks for."""
    axes = _axes(attrs, x.ndim)
    plan = _plan(attrs, [x.shape[axis] for axis in axes], scales, sizes)
    if attrs.coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None and roi.size:
        plan = [replace(axis, crop=(float(roi[i]), float(roi[i + len(axes)]))) for i, axis in enumerate(plan)]
    return dict(zip(axes, plan, strict=True))


def _outside(attrs: ResizeAttrs, plan: Mapping[int, Axis], rank: int) -> Array:
    """Which new pixels lie outside of the old picture."""
    found = np.zeros((), np.bool_)
    for number, axis in plan.items():
        points = coordinates(attrs, axis)
        found = found | _across((points < 0) | (points > axis.size - 1), number, rank)
    return found


def resize_vjp(call: VjpCall) -> Gradients:
    x, *rest = (*call.inputs, None, None, None)[:4]
    assert x is not None
    attrs = call.attrs

    def part() -> Array:
        plan, grad = _cropped(attrs, x, *rest), grad_of(call)
        if attrs.coordinate_transformation_mode == "tf_crop_and_resize":
            grad = np.where(_outside(attrs, plan, x.ndim), grad.dtype.type(0), grad)
        for number, axis in plan.items():
            points = coordinates(attrs, axis)
            if attrs.mode == "nearest":
                grad = add_along(grad, _picked(attrs, axis, points), axis.size, number)
            elif not _stays(axis, points):
                grad = apply_along(grad, weight_matrix(attrs, axis, points).T, number)
        return grad

    return gradients(call, part)


def _across(row: Array, axis: int, rank: int) -> Array:
    return np.asarray(row.reshape([-1 if i == axis else 1 for i in range(rank)]))


def coordinates(attrs: ResizeAttrs, axis: Axis) -> Array:
    """Where each new pixel lies among the old ones; float64 (out,)."""
    i = np.arange(axis.out, dtype=np.float64)
    mode = attrs.coordinate_transformation_mode
    if mode == "align_corners":
        length = axis.scale * axis.size  # not rounded, as the operator's own test cases have it
        return i * (axis.size - 1) / (length - 1) if axis.out > 1 else i * 0
    if mode == "asymmetric":
        return i / axis.scale
    if mode == "tf_crop_and_resize":
        start, end = axis.crop
        if axis.out <= 1:
            return i * 0 + 0.5 * (start + end) * (axis.size - 1)
        return start * (axis.size - 1) + i * (end - start) * (axis.size - 1) / (axis.out - 1)
    if mode == "pytorch_half_pixel" and axis.out <= 1:
        return i * 0
    points = (i + 0.5) / axis.scale - 0.5
    if mode == "half_pixel_symmetric":
        points = points + axis.size / 2 * (1 - axis.out / (axis.scale * axis.size))
    return points


def _resized(attrs: ResizeAttrs, x: Array, number: int, axis: Axis, points: Array) -> Array:
    if attrs.mode == "nearest":
        return np.take(x, _picked(attrs, axis, points), number)
    return x if _stays(axis, points) else apply_along(x, weight_matrix(attrs, axis, points), number)


def _stays(axis: Axis, points: Array) -> bool:
    return axis.out == axis.size and np.array_equal(points, np.arange(axis.size))


def nearest(points: Array, mode: str) -> Array:
    """The pixels next to these points, int64; halves go as the mode says."""
    shifts = {"round_prefer_floor": -0.5, "ceil": 0.0, "round_prefer_ceil": 0.5, "floor": 0.0}
    shifted = points + shifts[mode]
    return np.asarray(np.ceil(shifted) if mode in ("round_prefer_floor", "ceil") else np.floor(shifted), np.int64)


def weight_matrix(attrs: ResizeAttrs, axis: Axis, points: Array) -> Array:
    """How much of each old pixel goes into each new one; float64 (out, size). Outside, the border pixel goes on."""
    stretch = min(axis.scale, 1.0) if attrs.antialias else 1.0
    reach = math.ceil((1 if attrs.mode == "linear" else 2) / stretch)
    pixels = np.floor(points)[:, None].astype(np.int64) + np.arange(-reach, reach + 2)
    distances = np.abs(pixels - points[:, None]) * stretch
    weights = np.maximum(1 - distances, 0) if attrs.mode == "linear" else cubic(distances, attrs.cubic_coeff_a)
    if attrs.exclude_outside:
        weights = np.where((pixels >= 0) & (pixels < axis.size), weights, 0)
    weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((len(points), axis.size))
    np.add.at(matrix, (np.arange(len(points))[:, None], pixels.clip(0, axis.size - 1)), weights)
    return matrix


def cubic(distance: Array, a: float) -> Array:
    """The kernel of Keys, Cubic convolution interpolation for digital image processing, 1981."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def cubic_slope(distance: Array, a: float) -> Array:
    """The derivative of ``cubic`` by the distance."""
    near = (3 * (a + 2) * distance - 2 * (a + 3)) * distance
    far = (3 * a * distance - 10 * a) * distance + 8 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


register(
    OpSpec(
        name="resize",
        attrs=ResizeAttrs,
        inputs=("x", "roi?", "scales?", "sizes?"),
        infer=resize_type,
        reference=resize,
        rule=QuantRule.SAME_AS_INPUT,
        onnx=("Resize", "Upsample"),
        kernel="resize",
        vjp=resize_vjp,
        empty=True,
    )
)
