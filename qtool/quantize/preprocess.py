"""How one picture becomes an input: as torchvision's Resize, CenterCrop, Grayscale, ToTensor and Normalize do it."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array
from qtool.quantize.data_sources import data_errors
from qtool.recipe.schema import Colour, Layout, Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int | None, int | None]
"""Height and width; None where pictures may differ."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
"""What is decoded, whatever a file is called: other decoders of Pillow start programs."""
_BROKEN = (SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, struct.error)
"""What Pillow's decoders raise on damaged files, besides OSError."""


def read_image(file: Path | bytes, where: str, preprocess: Preprocess, size: Size) -> Array:
    """One picture as float32, (channels, height, width) or with ``layout: nhwc`` (height, width, channels).

    y[c] = (low + x[c] * (high - low) / 255 - mean[c]) / std[c], channels in the order of ``colour``. DataError that
    begins with ``where`` for what is no picture, or has another size than the model takes.
    """
    from PIL import Image

    try:
        with data_errors(where), Image.open(_opened(file), formats=FORMATS) as opened:
            if opened.mode.startswith(("I", "F")):
                raise DataError(f"{where}: it has more than 8 bits a channel (Pillow's mode {opened.mode}); expected 8")
            grey = preprocess.colour is Colour.GRAY
            picture = _resized(opened.convert("L" if grey else "RGB"), preprocess.resize)
            pixels = np.asarray(_cropped(picture, preprocess.crop, where), np.float32)
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: it is no image that can be read: {error}") from error
    if any(wanted not in (None, got) for got, wanted in zip(pixels.shape, size, strict=False)):
        got = f"{pixels.shape[0]}x{pixels.shape[1]}"
        expected = "x".join("any" if wanted is None else str(wanted) for wanted in size)
        raise DataError(f"{where}: the image is {got} (height x width) after preprocessing; expected {expected}")
    return _normalized(pixels.reshape(*pixels.shape[:2], preprocess.channels), preprocess)


def _opened(file: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(file) if isinstance(file, bytes) else file


def _normalized(pixels: Array, preprocess: Preprocess) -> Array:
    if preprocess.noise is not None:
        random = np.random.RandomState(preprocess.noise.seed)
        pixels = (pixels + random.normal(0.0, preprocess.noise.sigma, pixels.shape)).astype(np.float32)
    if preprocess.colour is Colour.BGR:
        pixels = pixels[:, :, ::-1]
    low, high = preprocess.range
    mean, std = (np.array(numbers, np.float32) for numbers in (preprocess.mean, preprocess.std))
    scaled = (pixels / np.float32(255 / (high - low)) + np.float32(low) - mean) / std
    return np.ascontiguousarray(scaled if preprocess.layout is Layout.NHWC else scaled.transpose(2, 0, 1))


def _resized(picture: Image, resize: int | tuple[int, int] | None) -> Image:
    """Bilinear: to (height, width), or the short side to one length and the long side rounded down as torchvision."""
    if resize is None:
        return picture
    from PIL.Image import Resampling

    width, height = picture.size
    if isinstance(resize, tuple):
        new = (resize[1], resize[0])
    elif width <= height:
        new = (resize, int(resize * height / width))
    else:
        new = (int(resize * width / height), resize)
    return picture if new == picture.size else picture.resize(new, Resampling.BILINEAR)


def _cropped(picture: Image, side: int | None, where: str) -> Image:
    if side is None:
        return picture
    width, height = picture.size
    if min(width, height) < side:
        raise DataError(f"{where}: the image is {height}x{width} (height x width), too small for 'crop: {side}'")
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return picture.crop((left, top, left + side, top + side))
