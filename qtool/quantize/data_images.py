"""A folder of pictures as a stream of inputs, prepared as by torchvision's Resize, CenterCrop, ToTensor, Normalize."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qtool.errors import DataError, MissingExtraError
from qtool.ir import Array, DType, Value
from qtool.ir.limits import shown
from qtool.quantize.data_layout import Found, files_of
from qtool.quantize.data_sources import Cursor, MemorySource, data_errors
from qtool.recipe.schema import DataConfig, Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_CHANNELS = 3


def has_images(folder: Path) -> bool:
    """Whether a folder holds pictures, and no arrays that would be meant instead."""
    files = files_of(folder)
    return any(suffix in files for suffix in SUFFIXES) and not {".npz", ".npy"} & files.keys()


def find_images(folder: Path, split: str, config: DataConfig, inputs: Mapping[str, Value]) -> Found:
    """The pictures of a folder in the order of their names, and their classes from ``config.labels``.

    Raises DataError where the recipe or the model does not fit pictures, MissingExtraError without Pillow.
    """
    if split:
        raise DataError(f"{folder}: there is no split {shown(split)}: a folder of images has one folder a split")
    files = files_of(folder)
    paths = sorted(path for suffix in SUFFIXES for path in files.get(suffix, []))
    if config.preprocess is None:
        raise DataError(
            f"{folder}: a folder of images needs 'preprocess: {{resize: ..., crop: ..., mean: [...], std: [...]}}', "
            "the same as in training"
        )
    name, size = _image_input(folder, config.preprocess, inputs)
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtraError("pillow", "images", f"reading the images of {folder}") from None
    labels = _read_labels(config.labels, paths) if config.labels else None
    return Found({name: ImageSource(folder, tuple(paths), config.preprocess, size)}, labels)


def _image_input(folder: Path, preprocess: Preprocess, inputs: Mapping[str, Value]) -> tuple[str, tuple[int, int]]:
    """The model's only input, and the height and width that its pictures must have."""
    value = next(iter(inputs.values()), None)
    if value is None or len(inputs) != 1 or len(value.shape) != 4 or value.shape[1] not in (_CHANNELS, "C"):
        spelt = ", ".join(f"{shown(name)} of shape {value.shape}" for name, value in inputs.items())
        raise DataError(f"{folder}: images are fed to one input of shape (N, 3, H, W); the model has {spelt or 'none'}")
    if value.dtype is not DType.FLOAT32:
        raise DataError(
            f"{folder}: images are float32, and the model's input {shown(value.name)} is {value.dtype.value}"
        )
    size = [preprocess.crop if isinstance(n, str) else n for n in value.shape[2:]]
    if None in size:
        raise DataError(f"{folder}: the model takes images of any size, so 'preprocess: {{crop: ...}}' has to set one")
    if preprocess.crop and any(n != preprocess.crop for n in size):
        raise DataError(f"{folder}: 'crop: {preprocess.crop}' does not fit the model, which takes {size[0]}x{size[1]}")
    return value.name, (int(size[0] or 0), int(size[1] or 0))


@dataclass(frozen=True)
class ImageSource:
    """Pictures that are read and prepared when their turn comes: float32 of shape (n, 3, height, width)."""

    folder: Path
    paths: tuple[Path, ...]
    preprocess: Preprocess
    size: tuple[int, int]

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.paths), _CHANNELS, *self.size)

    def open(self) -> Cursor:
        return _ImageCursor(self)


class _ImageCursor:
    def __init__(self, source: ImageSource) -> None:
        self._source, self._at = source, 0

    def take(self, count: int) -> Array:
        paths = self._source.paths[self._at : self._at + count]
        self._at += count
        return np.stack([read_image(path, self._source.preprocess, self._source.size) for path in paths])

    def close(self) -> None:
        """Every picture is closed once it is read."""


def read_image(path: Path, preprocess: Preprocess, size: tuple[int, int]) -> Array:
    """One picture as float32 (3, height, width): y[c] = (x[c] / 255 - mean[c]) / std[c] in RGB."""
    from PIL import Image, UnidentifiedImageError

    try:
        with data_errors(str(path)), Image.open(path) as opened:
            picture = _cropped(_resized(opened.convert("RGB"), preprocess.resize), preprocess.crop, path)
            pixels = np.asarray(picture, np.float32)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: it is no image that can be read: {error}") from error
    if pixels.shape[:2] != size:
        got = f"{pixels.shape[0]}x{pixels.shape[1]}"
        raise DataError(
            f"{path}: the image is {got} (height x width) after preprocessing; expected {size[0]}x{size[1]}"
        )
    mean, std = (np.array(numbers, np.float32) for numbers in (preprocess.mean, preprocess.std))
    scaled = (pixels / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _resized(picture: Image, short_side: int | None) -> Image:
    """The short side made ``short_side`` long, bilinear, the long side rounded down as torchvision does."""
    if short_side is None:
        return picture
    from PIL.Image import Resampling

    width, height = picture.size
    if width <= height:
        new = (short_side, int(short_side * height / width))
    else:
        new = (int(short_side * width / height), short_side)
    return picture if new == picture.size else picture.resize(new, Resampling.BILINEAR)


def _cropped(picture: Image, side: int | None, path: Path) -> Image:
    if side is None:
        return picture
    width, height = picture.size
    if min(width, height) < side:
        raise DataError(f"{path}: the image is {height}x{width} (height x width), too small for 'crop: {side}'")
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return picture.crop((left, top, left + side, top + side))


def _read_labels(path: Path, images: list[Path]) -> MemorySource:
    """The class of each picture from a ``.csv`` of file names and class numbers; a first line of titles is skipped."""
    with data_errors(str(path)):
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = [(line, row) for line, row in enumerate(csv.reader(file), 1) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: it is no .csv file: {error}") from error
    classes: dict[str, int] = {}
    for line, row in rows:
        name, number = row[0].strip(), row[1].strip() if len(row) > 1 else ""
        if not number.lstrip("-").isdigit() or len(number) > 18:
            if line == 1:
                continue
            raise DataError(f"{path}, line {line}: got {shown(','.join(row))}; expected a file name and a class number")
        if classes.setdefault(name, int(number)) != int(number):
            raise DataError(f"{path}, line {line}: {shown(name)} has two classes")
    missing = [image.name for image in images if image.name not in classes]
    if missing:
        raise DataError(f"{path}: there is no class for {shown(missing[0])} ({len(missing)} of {len(images)} images)")
    return MemorySource(str(path), np.array([classes[image.name] for image in images], np.int64))
