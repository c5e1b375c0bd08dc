"""Random changes to a batch of images, for training on more of them than there are."""

from __future__ import annotations

import numpy as np

from qtool.ir import Array
from qtool.ops.sampling import AffineGridAttrs, GridSampleAttrs, affine_grid, grid_sample
from qtool.quantize.qat.streams import Use, uniform
from qtool.recipe.training import Augment

_BILINEAR = GridSampleAttrs("linear", "border", align_corners=False)
_POINTS = 1 << 17
"""Pixels that are moved at once: what is computed for each takes some hundred bytes."""
_FLIP, _ANGLE, _SCALE, _RIGHT, _DOWN, _ROW, _COLUMN, _DRAWS = range(8)
"""What each image's numbers are for. All are drawn whatever is asked for, so that one change does not move another."""


def augmented(images: Array, config: Augment, seed: int, epoch: int, batch: int) -> Array:
    """Images (N, C, height, width) of any float type, changed at random; the same for the same seed, epoch and batch.

    In this order: left and right are swapped; the image is turned, scaled and shifted, and its border goes on outside
    of it; it is shifted by whole pixels, up to ``crop`` each way, in a frame of zeros. These are zeros of the tensor:
    where images are normalized that is their mean, not black.
    """
    drawn = uniform(seed, Use.AUGMENT, epoch, batch, count=len(images) * _DRAWS).reshape(-1, _DRAWS)
    if config.flip:
        images = np.where(drawn[:, _FLIP, None, None, None] < 0.5, images[..., ::-1], images)
    if config.moves:
        images = _moved(images, _matrices(config, 2 * drawn - 1, images.shape[2:]))
    return _cropped(images, config.crop, drawn) if config.crop else images


def _matrices(config: Augment, drawn: Array, size: tuple[int, ...]) -> Array:
    """(N, 2, 3): from the place of a pixel in the result to that in the image, both axes running from -1 to 1."""
    height, width = size
    angle, zoom = np.deg2rad(config.rotate) * drawn[:, _ANGLE], 1 + config.scale * drawn[:, _SCALE]
    cosine, sine = np.cos(angle) * zoom, np.sin(angle) * zoom
    right, down = (config.shift * drawn[:, column] * 2 / side for column, side in ((_RIGHT, width), (_DOWN, height)))
    # Turned among pixels, which are not square in these units where the image is not.
    rows = ((cosine, -sine * height / width, right), (sine * width / height, cosine, down))
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def _moved(images: Array, matrices: Array) -> Array:
    moved = np.empty_like(images, order="C")
    step = max(1, _POINTS // (images.shape[2] * images.shape[3]))
    for start in range(0, len(images), step):
        some, turned = images[start : start + step], matrices[start : start + step]
        (grid,) = affine_grid(AffineGridAttrs(), turned, np.array(some.shape, np.int64))
        (moved[start : start + step],) = grid_sample(_BILINEAR, some, grid)
    return moved


def _cropped(images: Array, pixels: int, drawn: Array) -> Array:
    count, channels, height, width = images.shape
    framed = np.zeros((count, channels, height + 2 * pixels, width + 2 * pixels), images.dtype)
    framed[:, :, pixels : pixels + height, pixels : pixels + width] = images
    places = np.floor(drawn[:, (_ROW, _COLUMN)] * (2 * pixels + 1)).astype(np.int64)
    cropped = np.empty(images.shape, images.dtype)
    for number, (row, column) in enumerate(places):
        cropped[number] = framed[number, :, row : row + height, column : column + width]
    return cropped
