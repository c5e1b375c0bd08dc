"""Pictures read at points between their pixels; named and defined as ONNX has them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, TensorType
from qtool.ops.dims import need_float, need_integers, need_rank, same_size, spell
from qtool.ops.dynamic import as_ints, sizes_of
from qtool.ops.generate import checked_size
from qtool.ops.registry import Attrs, OpSpec, register, require
from qtool.ops.resize import cubic

Types = tuple[TensorType, ...]
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
    sizes = x.shape[2:]
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(attrs.mode, attrs.mode)
    flat = np.nan_to_num(grid.reshape(len(grid), -1, len(sizes)).astype(np.float64)[..., ::-1], nan=-1.0)
    taps: list[list[tuple[Array, Array]]] = []
    for axis, size in enumerate(sizes):
        positions = _pixels(flat[..., axis], size, attrs)
        if mode != "cubic":  # a cubic's neighbours are moved one by one
            positions = _inside(positions, size, attrs)
        taps.append(_axis_taps(positions, mode))
    y = np.zeros((*x.shape[:2], flat.shape[1]))
    for combination in itertools.product(*taps):
        weight = np.prod([each for _, each in combination], axis=0)
        y += _read(attrs, x, [pixel for pixel, _ in combination]) * weight[:, None]
    return (y.reshape(*x.shape[:2], *grid.shape[1:-1]).astype(x.dtype),)


def _axis_taps(positions: Array, mode: str) -> list[tuple[Array, Array]]:
    """The pixels along one axis that count for each position, and how much."""
    if mode == "nearest":
        return [(np.rint(positions).astype(np.int64), np.ones_like(positions))]
    first = np.floor(positions).astype(np.int64)
    reach = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    found = []
    for step in reach:
        distance = np.abs(positions - (first + step))
        found.append((first + step, 1 - distance if mode == "linear" else cubic(distance, CUBIC_A)))
    return found


def _read(attrs: GridSampleAttrs, x: Array, pixels: list[Array]) -> Array:
    """The pixels (N, C, points) of x at these indices (N, points) an axis; 0, or what the padding says, outside."""
    kept = np.ones(pixels[0].shape, np.bool_)
    index: list[Array] = []
    for pixel, size in zip(pixels, x.shape[2:], strict=True):
        moved = np.rint(_inside(pixel.astype(np.float64), size, attrs)).astype(np.int64)
        kept &= (moved >= 0) & (moved < size)
        index.append(np.clip(moved, 0, size - 1))
    batch = np.arange(len(x))[:, None]
    values = np.moveaxis(x, 1, -1)[(batch, *index)]
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
    axes = []
    for count in spatial:
        steps = np.arange(count, dtype=np.float64)
        if attrs.align_corners:
            axes.append(2 * steps / (count - 1) - 1 if count > 1 else steps * 0 - 1 if count else steps)
        else:
            axes.append((2 * steps + 1) / count - 1)
    mesh = np.meshgrid(*axes, indexing="ij")
    points = np.stack([*mesh[::-1], np.ones_like(mesh[0])], -1).reshape(-1, len(spatial) + 1)
    moved = np.matmul(points, np.swapaxes(theta.astype(np.float64), 1, 2))
    return (moved.reshape(batch, *spatial, len(spatial)).astype(theta.dtype),)


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
    shift = 0.5 if attrs.coordinate_transformation_mode == "half_pixel" else 0.0
    for number, (roi, batch) in enumerate(zip(rois.astype(np.float64), batches, strict=True)):
        left, top, right, bottom = roi * attrs.spatial_scale - shift
        height, width = bottom - top, right - left
        if not shift:
            height, width = max(height, 1.0), max(width, 1.0)
        rows = _samples(attrs.sampling_ratio, top, height / attrs.output_height, attrs.output_height, x.shape[2])
        columns = _samples(attrs.sampling_ratio, left, width / attrs.output_width, attrs.output_width, x.shape[3])
        y[number] = _bins(attrs, x[int(batch)].astype(np.float64), rows, columns)
    return (y,)


Sampled = tuple[Array, Array, Array]
"""The lower pixel, the weight of the upper one, and the weight of both; each (bins, samples)."""


def _samples(ratio: int, start: float, size: float, bins: int, pixels: int) -> Sampled:
    count = ratio or max(int(np.ceil(size)), 0)
    points = start + (np.arange(bins)[:, None] + (np.arange(count) + 0.5) / max(count, 1)) * size
    counted = ((points >= -1) & (points <= pixels)).astype(np.float64)
    points = np.clip(points, 0, pixels - 1)
    low = np.minimum(np.floor(points).astype(np.int64), max(pixels - 2, 0))
    return low, points - low, counted


def _bins(attrs: RoiAlignAttrs, picture: Array, rows: Sampled, columns: Sampled) -> Array:
    (top, down, row_counted), (left, across, column_counted) = rows, columns
    bottom = np.minimum(top + 1, picture.shape[1] - 1)
    right = np.minimum(left + 1, picture.shape[2] - 1)
    parts = []
    for pixel_rows, vertical in ((top, 1 - down), (bottom, down)):
        for pixel_columns, horizontal in ((left, 1 - across), (right, across)):
            values = picture[:, pixel_rows[:, :, None, None], pixel_columns]
            weight = (vertical * row_counted)[:, :, None, None] * (horizontal * column_counted)
            parts.append(values * weight)  # (channels, bins, samples, bins, samples)
    if attrs.mode == "avg":
        return np.asarray(np.sum(parts, axis=0).mean((2, 4))) if parts[0].size else np.zeros(())
    return np.max(parts, axis=0).max((2, 4))  # type: ignore[no-any-return]


register(OpSpec("grid_sample", GridSampleAttrs, ("x", "grid"), _grid_sample_type, grid_sample, onnx=("GridSample",)))
register(
    OpSpec("affine_grid", AffineGridAttrs, ("theta", "size"), _affine_grid_type, affine_grid, onnx=("AffineGrid",))
)
register(
    OpSpec("roi_align", RoiAlignAttrs, ("x", "rois", "batch_indices"), _roi_align_type, roi_align, onnx=("RoiAlign",))
)
