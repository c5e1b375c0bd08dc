"""Pictures as a stream of inputs, and where they are files of a folder; ``preprocess`` says what is done to each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qtool.errors import DataError, MissingExtraError
from qtool.ir import Array, DType, Value
from qtool.ir.limits import shown
from qtool.quantize.data_layout import Found, files_of
from qtool.quantize.data_sources import VARIES, Cursor, MemorySource, Source, data_errors
from qtool.quantize.preprocess import Size, read_image
from qtool.recipe.schema import Colour, DataConfig, Layout, Preprocess

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


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
    labels = _read_labels(config.labels, paths) if config.labels else None
    return found_images(FolderImages(folder, tuple(paths)), labels, config, inputs)


def found_images(images: Images, labels: Source | None, config: DataConfig, inputs: Mapping[str, Value]) -> Found:
    """Pictures as the model's only input, and their labels; with ``noise``, the clean pictures are the targets."""
    preprocess = config.preprocess
    if preprocess is None:
        raise DataError(
            f"{images.where}: images need 'preprocess: {{resize: ..., crop: ..., mean: [...], std: [...]}}', "
            "the same as in training"
        )
    name, size = _image_input(images.where, preprocess, inputs)
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtraError("pillow", "images", f"reading the images of {images.where}") from None
    if preprocess.noise is not None:
        labels = ImageSource(images, replace(preprocess, noise=None), size)
    return Found({name: ImageSource(images, preprocess, size)}, labels)


def _image_input(where: str, preprocess: Preprocess, inputs: Mapping[str, Value]) -> tuple[str, Size]:
    """The model's only input, and the height and width that its pictures must have (None: any)."""
    value = next(iter(inputs.values()), None)
    if value is None or len(inputs) != 1 or not _fits(value, preprocess):
        spelt = ", ".join(f"{shown(name)} of shape {value.shape}" for name, value in inputs.items())
        hint = _hint(value, preprocess) if value is not None and len(inputs) == 1 else ""
        expected = _layout(preprocess.channels, preprocess.layout)
        raise DataError(
            f"{where}: images are fed to one input of shape {expected}; the model has {spelt or 'none'}{hint}"
        )
    if value.dtype is not DType.FLOAT32:
        raise DataError(
            f"{where}: images are float32, and the model's input {shown(value.name)} is {value.dtype.value}"
        )
    shape = value.shape[1:3] if preprocess.layout is Layout.NHWC else value.shape[2:]
    wanted = [None if isinstance(n, str) else n for n in shape]
    made = _made(preprocess)
    if any(None not in (n, m) and n != m for n, m in zip(wanted, made, strict=True)):
        key = f"crop: {preprocess.crop}" if preprocess.crop else f"resize: {list(made)}"
        raise DataError(f"{where}: '{key}' does not fit the model, which takes {wanted[0]}x{wanted[1]}")
    height, width = (m if n is None else n for n, m in zip(wanted, made, strict=True))
    return value.name, (height, width)


def _made(preprocess: Preprocess) -> Size:
    """The size that preprocessing makes of every picture."""
    if preprocess.crop is not None:
        return preprocess.crop, preprocess.crop
    return preprocess.resize if isinstance(preprocess.resize, tuple) else (None, None)


def _fits(value: Value, preprocess: Preprocess) -> bool:
    axis = 3 if preprocess.layout is Layout.NHWC else 1
    return len(value.shape) == 4 and (isinstance(value.shape[axis], str) or value.shape[axis] == preprocess.channels)


def _hint(value: Value, preprocess: Preprocess) -> str:
    """The one key that would make pictures fit."""
    other = Layout.NCHW if preprocess.layout is Layout.NHWC else Layout.NHWC
    if _fits(value, replace(preprocess, layout=other)):
        return f"; set 'layout: {other.value}'"
    colour = Colour.RGB if preprocess.colour is Colour.GRAY else Colour.GRAY
    return f"; set 'colour: {colour.value}'" if _fits(value, replace(preprocess, colour=colour)) else ""


def _layout(channels: int, layout: Layout) -> str:
    return f"(N, H, W, {channels})" if layout is Layout.NHWC else f"(N, {channels}, H, W)"


class Images(Protocol):
    """Pictures as they are stored, by number."""

    @property
    def where(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, number: int) -> tuple[Path | bytes, str]:
        """A file or the bytes of one, and its name for messages."""


@dataclass(frozen=True)
class FolderImages:
    """Files of a folder."""

    folder: Path
    paths: tuple[Path, ...]

    @property
    def where(self) -> str:
        return str(self.folder)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, number: int) -> tuple[Path, str]:
        return self.paths[number], str(self.paths[number])


@dataclass(frozen=True)
class ImageSource:
    """Pictures that are read and prepared when their turn comes: float32 of shape (n, channels, height, width)."""

    images: Images
    preprocess: Preprocess
    size: Size

    @property
    def where(self) -> str:
        return self.images.where

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        sides, channels = (VARIES if n is None else n for n in self.size), self.preprocess.channels
        last = self.preprocess.layout is Layout.NHWC
        return (len(self.images), *sides, channels) if last else (len(self.images), channels, *sides)

    def open(self) -> Cursor:
        return _ImageCursor(self)


class _ImageCursor:
    def __init__(self, source: ImageSource) -> None:
        self._source, self._at = source, 0

    def take(self, count: int) -> Array:
        self._at += count
        return self.pick(np.arange(self._at - count, self._at))

    def skip(self, count: int) -> None:
        self._at += count

    def pick(self, numbers: Array) -> Array:
        source = self._source
        files = (source.images.read(int(number)) for number in numbers)
        return np.stack([read_image(file, where, source.preprocess, source.size) for file, where in files])

    def close(self) -> None:
        """Every picture is closed once it is read."""


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
