"""Pictures read at points between their pixels; named and defined as ONNX has them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, TensorType
from qtool.ops.dims import need_float, need_integers, need_rank, same_size, spell
from qtool.ops.dynamic import as_ints, sizes_of
from qtool.ops.generate import checked_size
from qtool.ops.registry import Attrs, OpSpec, VjpCall, register, require
from qtool.ops.resize import cubic, cubic_slope
from qtool.ops.vjp import Gradients, grad_of, gradients

Types = tuple[TensorType, ...]
Sampled = tuple[Array, Array, Array]
"""The lower pixel, the weight of the upper one, and the weight of both; each (bins, samples)."""
Corner = tuple[Array, Array, Array]
"""Rows, columns and weights of one of the four pixels around each sample; they broadcast to (bins, samples) twice."""
CUBIC_A = -0.75


@dataclass(frozen=True)
class GridSampleAttrs(Attrs):
    """Points of -1 and 1 are the middles of the border pixels (``align_corners``), or the borders of the picture."""

    mode: Literal["linear", "nearest", "cubic", "bilinear", "bicubic"] = "linear"
    padding_mode: Literal["zeros", "border", "reflection"] = "zeros"
    align_corners: bool = False


@dataclass(frozen=True)
class AffineGridAttrs(Attrs):
    align_corners: bool = False


@dataclass(frozen=True)
class RoiAlignAttrs(Attrs):
    """``sampling_ratio`` points along each side of a bin; 0 means about one a pixel."""

    mode: Literal["avg", "max"] = "avg"
    output_height: int = 1
    output_width: int = 1
    sampling_ratio: int = 0
    spatial_scale: float = 1.0
    coordinate_transformation_mode: Literal["half_pixel", "output_half_pixel"] = "half_pixel"


def _grid_sample_type(_: GridSampleAttrs, x: TensorType, grid: TensorType) -> Types:
    need_float(x=x)
    need_float(grid=grid)
    rank = len(x.shape) - 2
    got = f"x of shape {spell(x.shape)} and a grid of shape {spell(grid.shape)}"
    fits = rank >= 1 and len(grid.shape) == rank + 2 and same_size(grid.shape[-1], rank)
    require(fits and same_size(x.shape[0], grid.shape[0]), got, "a point of as many numbers as x has spatial axes")
    return (TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1])),)


def _pixels(points: Array, size: int, attrs: GridSampleAttrs) -> Array:
    """Points in [-1, 1] as positions among the pixels of one axis."""
    if attrs.align_corners:
        return np.asarray((points + 1) / 2 * (size - 1))
    return np.asarray(((points + 1) * size - 1) / 2)


def _inside(positions: Array, size: int, attrs: GridSampleAttrs) -> Array:
    """Positions moved into the picture as the padding mode has it; "zeros" leaves them."""
    if attrs.padding_mode == "border":
        return np.clip(positions, 0, size - 1)
    if attrs.padding_mode == "reflection":
        low, high = (0.0, size - 1.0) if attrs.align_corners else (-0.5, size - 0.5)
        span = high - low
        if span <= 0:
            return np.zeros_like(positions)
        folded = np.mod(positions - low, 2 * span)
        return np.asarray(low + np.minimum(folded, 2 * span - folded))
    return positions


def grid_sample(attrs: GridSampleAttrs, x: Array, grid: Array) -> tuple[Array, ...]:
    """Spatial Transformer Networks (Jaderberg et al., 2015); the last number of a point belongs to the first axis."""
    y = np.zeros((*x.shape[:2], math.prod(grid.shape[1:-1])))
    for combination in itertools.product(*_grid_taps(attrs, x.shape[2:], grid)):
        weight = np.prod([tap.weight for tap in combination], axis=0)
        y += _read(attrs, x, [tap.pixel for tap in combination]) * weight[:, None]
    return (y.reshape(*x.shape[:2], *grid.shape[1:-1]).astype(x.dtype),)


@dataclass(frozen=True)
class Tap:
    """Along one axis, for every point: a pixel, its weight, and the weight's derivative by the point in ``grid``."""

    pixel: Array
    weight: Array
    slope: Array


def _grid_taps(attrs: GridSampleAttrs, sizes: Sequence[int], grid: Array) -> list[list[Tap]]:
    """The taps of each axis; their arrays are (N, points)."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(attrs.mode, attrs.mode)
    flat = np.nan_to_num(grid.reshape(len(grid), -1, len(sizes)).astype(np.float64)[..., ::-1], nan=-1.0)
    taps = []
    for axis, size in enumerate(sizes):
        positions = _pixels(flat[..., axis], size, attrs)
        stretch = np.full_like(positions, (size - 1 if attrs.align_corners else size) / 2)
        if mode != "cubic":  # a cubic's neighbours are moved one by one
            stretch = stretch * _inside_slope(positions, size, attrs)
            positions = _inside(positions, size, attrs)
        taps.append(_axis_taps(positions, stretch, mode))
    return taps


def _inside_slope(positions: Array, size: int, attrs: GridSampleAttrs) -> Any:
    """The derivative of ``_inside``: 0 on the border and behind it, -1 where the picture is mirrored."""
    if attrs.padding_mode == "border":
        return (positions > 0) & (positions < size - 1)
    if attrs.padding_mode == "reflection":
        low, span = (0.0, size - 1.0) if attrs.align_corners else (-0.5, float(size))
        return np.where(np.mod(positions - low, 2 * span) <= span, 1.0, -1.0) if span > 0 else 0.0
    return 1.0


def _axis_taps(positions: Array, stretch: Array, mode: str) -> list[Tap]:
    """``stretch`` is the derivative of the positions."""
    if mode == "nearest":
        return [Tap(np.rint(positions).astype(np.int64), np.ones_like(positions), np.zeros_like(positions))]
    first = np.floor(positions).astype(np.int64)
    reach = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    found = []
    for step in reach:
        distance = np.abs(positions - (first + step))
        sign = stretch if step <= 0 else -stretch
        if mode == "linear":
            found.append(Tap(first + step, 1 - distance, -sign))
        else:
            found.append(Tap(first + step, cubic(distance, CUBIC_A), sign * cubic_slope(distance, CUBIC_A)))
    return found


def grid_sample_vjp(call: VjpCall) -> Gradients:
    x, grid = call.inputs
    assert x is not None
    assert grid is not None
    attrs = call.attrs
    grad = grad_of(call).reshape(*x.shape[:2], -1).astype(np.float64)
    combinations = list(itertools.product(*_grid_taps(attrs, x.shape[2:], grid)))

    def by_x() -> Array:
        total = np.zeros(x.size)
        planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1) * math.prod(x.shape[2:])
        for combination in combinations:
            weight = np.prod([tap.weight for tap in combination], axis=0)
            kept, index = _places(attrs, x.shape[2:], [tap.pixel for tap in combination])
            places = planes + np.ravel_multi_index(index, x.shape[2:])[:, None]
            total += np.bincount(places.reshape(-1), (grad * (weight * kept)[:, None]).reshape(-1), x.size)
        return total.reshape(x.shape)

    def by_grid() -> Array:
        total = np.zeros((len(x), grad.shape[2], x.ndim - 2))
        for combination in combinations:
            values = (_read(attrs, x, [tap.pixel for tap in combination]) * grad).sum(1)
            for axis, tap in enumerate(combination):
                others = [other.weight for i, other in enumerate(combination) if i != axis]
                total[..., axis] += values * tap.slope * np.prod(others, axis=0)
        return total[..., ::-1].reshape(grid.shape)

    return gradients(call, by_x, by_grid)


def _places(attrs: GridSampleAttrs, sizes: Sequence[int], pixels: list[Array]) -> tuple[Array, tuple[Array, ...]]:
    """Which of the pixels, given by an index an axis, are in the picture, and where; moved as the padding mode says."""
    kept = np.ones(pixels[0].shape, np.bool_)
    index: list[Array] = []
    for pixel, size in zip(pixels, sizes, strict=True):
        moved = np.rint(_inside(pixel.astype(np.float64), size, attrs)).astype(np.int64)
        kept &= (moved >= 0) & (moved < size)
        index.append(np.clip(moved, 0, size - 1))
    return kept, tuple(index)


def _read(attrs: GridSampleAttrs, x: Array, pixels: list[Array]) -> Array:
    """The pixels (N, C, points) of x at these indices (N, points) an axis; 0, or what the padding says, outside."""
    kept, index = _places(attrs, x.shape[2:], pixels)
    values = np.moveaxis(x, 1, -1)[(np.arange(len(x))[:, None], *index)]
    return np.moveaxis(np.where(kept[..., None], values, 0), -1, 1)


def _affine_grid_type(_: AffineGridAttrs, theta: TensorType, size: TensorType) -> Types:
    need_float(theta=theta)
    need_rank("theta", theta, 3, "(batch, axes, axes + 1)")
    sizes = sizes_of("size", size)
    rank = len(sizes) - 2
    fits = rank in (2, 3) and same_size(theta.shape[1], rank) and same_size(theta.shape[2], rank + 1)
    require(fits, f"theta of shape {spell(theta.shape)} for {len(sizes)} sizes", "matrices for the spatial axes")
    batch: Dim = theta.shape[0] if isinstance(sizes[0], str) else sizes[0]
    return (TensorType(theta.dtype, (batch, *sizes[2:], rank)),)


def affine_grid(attrs: AffineGridAttrs, theta: Array, size: Array) -> tuple[Array, ...]:
    batch, _, *spatial = checked_size(as_ints(size))
    if len(theta) != batch:
        raise DataError(f"got {len(theta)} matrices for a batch of {batch}")
    moved = np.matmul(_base_grid(attrs, spatial), np.swapaxes(theta.astype(np.float64), 1, 2))
    return (moved.reshape(batch, *spatial, len(spatial)).astype(theta.dtype),)


def _base_grid(attrs: AffineGridAttrs, spatial: Sequence[int]) -> Array:
    """The points of a picture, last axis first, each with a 1 behind; (points, axes + 1)."""
    axes = []
    for count in spatial:
        steps = np.arange(count, dtype=np.float64)
        if attrs.align_corners:
            axes.append(2 * steps / (count - 1) - 1 if count > 1 else steps * 0 - 1 if count else steps)
        else:
            axes.append((2 * steps + 1) / count - 1)
    mesh = np.meshgrid(*axes, indexing="ij")
    return np.stack([*mesh[::-1], np.ones_like(mesh[0])], -1).reshape(-1, len(spatial) + 1)


def affine_grid_vjp(call: VjpCall) -> Gradients:
    def part() -> Array:
        grad = grad_of(call).astype(np.float64)
        points = _base_grid(call.attrs, grad.shape[1:-1])
        return np.asarray(np.matmul(np.swapaxes(grad.reshape(len(grad), -1, grad.shape[-1]), 1, 2), points))

    return gradients(call, part)


def _roi_align_type(attrs: RoiAlignAttrs, x: TensorType, rois: TensorType, batches: TensorType) -> Types:
    need_float(x=x, rois=rois)
    need_integers(batch_indices=batches)
    need_rank("x", x, 4, "NCHW")
    fits = len(rois.shape) == 2 and same_size(rois.shape[1], 4) and len(batches.shape) == 1
    require(fits, f"rois of shape {spell(rois.shape)}", "(regions, 4)")
    sizes = (attrs.output_height, attrs.output_width)
    require(min(sizes) >= 1 and attrs.sampling_ratio >= 0, f"an output of {sizes}", "at least 1 each way")
    count = batches.shape[0] if isinstance(rois.shape[0], str) else rois.shape[0]
    return (TensorType(x.dtype, (count, x.shape[1], *sizes)),)


def roi_align(attrs: RoiAlignAttrs, x: Array, rois: Array, batches: Array) -> tuple[Array, ...]:
    """Mask R-CNN (He et al., 2017): each bin is the mean, or maximum, of bilinear samples."""
    y = np.zeros((len(rois), x.shape[1], attrs.output_height, attrs.output_width), x.dtype)
    for number, (roi, batch) in enumerate(zip(rois.astype(np.float64), batches, strict=True)):
        parts = _weighted(x[int(batch)].astype(np.float64), _region(attrs, roi, x.shape[2:]))
        if attrs.mode == "max":
            y[number] = parts.max((0, 3, 5))
        elif parts.size:
            y[number] = parts.sum(0).mean((2, 4))
    return (y,)


def roi_align_vjp(call: VjpCall) -> Gradients:
    """By x; the regions are not differentiated."""
    x, rois, batches = call.inputs
    assert x is not None
    assert rois is not None
    assert batches is not None
    attrs = call.attrs

    def part() -> Array:
        found, channels = np.zeros(x.shape), np.arange(x.shape[1])[:, None, None, None, None]
        for grad, roi, batch in zip(grad_of(call), rois.astype(np.float64), batches, strict=True):
            corners = _region(attrs, roi, x.shape[2:])
            shares = _shares(attrs, x[int(batch)].astype(np.float64), corners)
            for (rows, columns, weight), share in zip(corners, shares, strict=True):
                given = grad[:, :, None, :, None] * weight * share
                np.add.at(found[int(batch)], (channels, rows, columns), given)
        return found

    return gradients(call, part)


def _shares(attrs: RoiAlignAttrs, picture: Array, corners: Sequence[Corner]) -> Sequence[Any]:
    """What the weighted pixels of each corner count in their bin's mean, or whether they are its maximum."""
    if attrs.mode == "avg":
        return [1 / max(weight.shape[1] * weight.shape[3], 1) for _, _, weight in corners]
    parts = _weighted(picture, corners)
    order = (1, 2, 4, 0, 3, 5)  # (channels, bins, bins, corners and samples)
    flat = parts.transpose(order).reshape(parts.shape[1], parts.shape[2], parts.shape[4], -1)
    best = np.arange(flat.shape[-1]) == flat.argmax(-1)[..., None]
    return list(best.reshape([parts.shape[axis] for axis in order]).transpose(np.argsort(order)))


def _samples(ratio: int, start: float, size: float, bins: int, pixels: int) -> Sampled:
    count = ratio or max(int(np.ceil(size)), 0)
    points = start + (np.arange(bins)[:, None] + (np.arange(count) + 0.5) / max(count, 1)) * size
    counted = ((points >= -1) & (points <= pixels)).astype(np.float64)
    points = np.clip(points, 0, pixels - 1)
    low = np.minimum(np.floor(points).astype(np.int64), max(pixels - 2, 0))
    return low, points - low, counted


def _region(attrs: RoiAlignAttrs, roi: Array, sizes: Sequence[int]) -> list[Corner]:
    shift = 0.5 if attrs.coordinate_transformation_mode == "half_pixel" else 0.0
    left, top, right, bottom = roi * attrs.spatial_scale - shift
    height, width = bottom - top, right - left
    if not shift:
        height, width = max(height, 1.0), max(width, 1.0)
    rows = _samples(attrs.sampling_ratio, top, height / attrs.output_height, attrs.output_height, sizes[0])
    columns = _samples(attrs.sampling_ratio, left, width / attrs.output_width, attrs.output_width, sizes[1])
    return [
        (pixel_rows[:, :, None, None], pixel_columns, vertical[:, :, None, None] * horizontal)
        for pixel_rows, vertical in _sides(rows, sizes[0])
        for pixel_columns, horizontal in _sides(columns, sizes[1])
    ]


def _sides(sampled: Sampled, size: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The pixels on both sides of each sample along one axis, and their weights."""
    low, above, counted = sampled
    return (low, (1 - above) * counted), (np.minimum(low + 1, size - 1), above * counted)


def _weighted(picture: Array, corners: Sequence[Corner]) -> Array:
    """(corners, channels, bins, samples, bins, samples)"""
    return np.stack([picture[:, rows, columns] * weight for rows, columns, weight in corners])


register(
    OpSpec(
        "grid_sample",
        GridSampleAttrs,
        ("x", "grid"),
        _grid_sample_type,
        grid_sample,
        onnx=("GridSample",),
        vjp=grid_sample_vjp,
    )
)
register(
    OpSpec(
        "affine_grid",
        AffineGridAttrs,
        ("theta", "size"),
        _affine_grid_type,
        affine_grid,
        onnx=("AffineGrid",),
        vjp=affine_grid_vjp,
    )
)
register(
    OpSpec(
        "roi_align",
        RoiAlignAttrs,
        ("x", "rois", "batch_indices"),
        _roi_align_type,
        roi_align,
        onnx=("RoiAlign",),
        vjp=roi_align_vjp,
    )
)
