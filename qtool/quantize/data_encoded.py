"""Pictures in an ``.npz`` file, each as the bytes of an encoded file (JPEG, PNG, BMP or WebP), one after another.

======================  =========================================================================
``jpeg``                all bytes, uint8; not compressed again, so that any picture is read alone
``offsets``             where each begins and the last one ends: n + 1 increasing integers
``y`` or ``labels``     class numbers (optional)
``<split>_jpeg`` ...    the same for a split
======================  =========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Value
from qtool.ir.limits import MAX_MEMBERS
from qtool.ir.zipreader import open_archive
from qtool.quantize.data_images import found_images
from qtool.quantize.data_layout import LABELS, Found
from qtool.quantize.data_sources import MappedSource, Source, data_errors, member_source
from qtool.recipe.schema import DataConfig

_BYTES, _OFFSETS = "jpeg", "offsets"


def find_encoded(path: Path, split: str, config: DataConfig, inputs: Mapping[str, Value]) -> Found | None:
    """The pictures and labels of an ``.npz`` file; None for a file that holds no encoded pictures.

    Raises DataError where the file, the recipe or the model does not fit, MissingExtraError without Pillow.
    """
    with data_errors(str(path)):
        archive = open_archive(path, MAX_MEMBERS)
    prefix = f"{split}_" if split else ""
    members = {name.removesuffix(".npy"): name for name in archive.members}
    names = [prefix + _BYTES, prefix + _OFFSETS]
    if not members.keys() >= set(names) or inputs.keys() & {_BYTES, _OFFSETS}:
        return None
    encoded, offsets, *labels = (
        member_source(archive, members[name], f"{path}: '{name}'")
        for name in (*names, *(prefix + name for name in LABELS if prefix + name in members))
    )
    return found_images(_encoded(encoded, offsets), labels[0] if labels else None, config, inputs)


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Pictures by their places in an array of bytes."""

    encoded: MappedSource
    offsets: Array

    @property
    def where(self) -> str:
        return self.encoded.where

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, number: int) -> tuple[bytes, str]:
        begin, end = (int(offset) for offset in self.offsets[number : number + 2])
        where = f"{self.where}, picture {number}"
        with data_errors(where), open(self.encoded.path, "rb") as file:
            file.seek(self.encoded.begin + begin)
            return file.read(end - begin), where


def _encoded(encoded: Source, offsets: Source) -> EncodedImages:
    """Checks that every picture has a place of its own within the bytes."""
    if encoded.dtype != np.uint8 or len(encoded.shape) != 1:
        raise DataError(f"{encoded.where} is {encoded.dtype.name} of shape {encoded.shape}; expected uint8 of one axis")
    if not isinstance(encoded, MappedSource):
        raise DataError(f"{encoded.where} is compressed, which pictures are already; save it with numpy.savez")
    if offsets.dtype.kind not in "iu" or len(offsets.shape) != 1 or offsets.shape[0] < 2:
        raise DataError(
            f"{offsets.where} is {offsets.dtype.name} of shape {offsets.shape}; expected n + 1 integers for n pictures"
        )
    size = encoded.shape[0]
    if offsets.shape[0] > size + 1:
        raise DataError(f"{offsets.where} has {offsets.shape[0]} numbers; expected at most {size + 1} for {size} bytes")
    with closing(offsets.open()) as cursor:
        places = cursor.take(offsets.shape[0])
    if int(places[0]) < 0 or int(places[-1]) > size or (places[1:] <= places[:-1]).any():
        raise DataError(
            f"{offsets.where} runs from {places[0]} to {places[-1]}; expected increasing numbers within 0..{size}, "
            f"the bytes of {encoded.where}"
        )
    return EncodedImages(encoded, places.astype(np.int64))
