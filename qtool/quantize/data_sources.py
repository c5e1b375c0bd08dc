"""Arrays on disk as streams of samples: mapped where they lie plain in their file, else decompressed as they are read.

Nothing here holds more of a file than the samples that were asked for.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qtool.errors import DataError, ModelError
from qtool.ir import Array
from qtool.ir.npyformat import MAX_HEADER, NpyHeader, parse_header
from qtool.ir.zipreader import DEFLATED, Archive

VARIES = -1
"""The size of an axis that differs from sample to sample; such samples come one a batch."""
_READ = 1 << 20
_ENCRYPTED = 1


class Cursor(Protocol):
    """Reads a source from its first sample on."""

    def take(self, count: int) -> Array:
        """The next ``count`` samples, C-contiguous; there must be that many left."""

    def close(self) -> None:
        """Lets go of the file; arrays already taken stay."""


class Source(Protocol):
    """An array whose first axis counts samples. ``where`` names it in messages: file and array."""

    @property
    def where(self) -> str: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def open(self) -> Cursor: ...


@contextmanager
def data_errors(where: str) -> Iterator[None]:
    """Whatever is wrong with a file becomes a DataError that names it."""
    try:
        yield
    except ModelError as error:
        raise DataError(f"{where}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{where}: one batch of it needs more memory than there is") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{where}: it cannot be read: {getattr(error, 'strerror', None) or error}") from error


# ------------------------------------------------------------------------------------------------------------ in memory


@dataclass(frozen=True, eq=False)
class MemorySource:
    """An array that is small, such as labels read from a text file."""

    where: str
    array: Array

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def open(self) -> Cursor:
        return ArrayCursor(self.array)


class ArrayCursor:
    """Goes along an array, mapped or not."""

    def __init__(self, array: Array) -> None:
        self._array, self._at = array, 0

    def take(self, count: int) -> Array:
        self._at += count
        return np.require(self._array[self._at - count : self._at], requirements=["C", "A"])

    def close(self) -> None:
        self._array = self._array[:0].copy()


# --------------------------------------------------------------------------------------------------------------- mapped


@dataclass(frozen=True)
class MappedSource:
    """An array that lies plain in a file from byte ``begin`` on."""

    where: str
    path: Path
    begin: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    def open(self) -> Cursor:
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        with data_errors(self.where):
            # Reading past the end of a mapped file would end the process.
            if self.path.stat().st_size < self.begin + nbytes:
                raise DataError(f"{self.where}: the file has become shorter since it was opened")
            if nbytes == 0:
                return ArrayCursor(np.zeros(self.shape, self.dtype))
            order = "F" if self.fortran else "C"
            mapped = np.memmap(self.path, self.dtype, "r", self.begin, self.shape, order)  # type: ignore[call-overload]
            return ArrayCursor(mapped.view(np.ndarray))


def npy_source(path: Path) -> MappedSource:
    """The array of an ``.npy`` file; DataError if it is not one, or cut off."""
    with data_errors(str(path)):
        with open(path, "rb") as file:
            header = parse_header(file.read(MAX_HEADER), "it")
        size = path.stat().st_size
        if header.offset + header.nbytes != size:
            raise DataError(
                f"{path}: it has {size - header.offset} bytes of elements; "
                f"expected {header.nbytes} for {header.dtype.name} of shape {header.shape}: is it cut off?"
            )
    return _mapped(str(path), path, 0, header)


def as_one_sample(source: MappedSource) -> MappedSource:
    """The same array as a single sample."""
    return replace(source, shape=(1, *source.shape))


def member_source(archive: Archive, member: str, where: str) -> Source:
    """An array of an ``.npz`` file, compressed or not."""
    entry = archive.members[member]
    with data_errors(where):
        if entry.is_plain:
            return _mapped(where, archive.path, entry.start, archive.header(member))
        if entry.method != DEFLATED or entry.flags & _ENCRYPTED:
            raise DataError(f"{where} is encrypted or compressed in another way than numpy.savez_compressed does")
        with zipfile.ZipFile(archive.path) as opened, opened.open(member) as stream:
            header = parse_header(stream.read(MAX_HEADER), "it")
        if header.offset + header.nbytes != entry.size:
            raise DataError(f"{where}: it has {entry.size - header.offset} bytes of elements; expected {header.nbytes}")
        if header.fortran and len(header.shape) > 1:
            raise DataError(f"{where} is compressed and in Fortran order; save numpy.ascontiguousarray(x) instead")
    return PackedSource(where, archive.path, member, header)


def _mapped(where: str, path: Path, start: int, header: NpyHeader) -> MappedSource:
    return MappedSource(where, path, start + header.offset, header.dtype, header.shape, header.fortran)


# ----------------------------------------------------------------------------------------------------------- compressed


@dataclass(frozen=True)
class PackedSource:
    """A compressed member of an ``.npz``: it can only be read from its beginning on."""

    where: str
    path: Path
    member: str
    header: NpyHeader

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.header.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape

    def open(self) -> Cursor:
        return _PackedCursor(self)


class _PackedCursor:
    def __init__(self, source: PackedSource) -> None:
        self._source = source
        with data_errors(source.where):
            self._archive = zipfile.ZipFile(source.path)
            self._stream = self._archive.open(source.member)
            self._stream.read(source.header.offset)

    def take(self, count: int) -> Array:
        header = self._source.header
        shape = (count, *header.shape[1:])
        taken = np.empty(math.prod(shape), header.dtype)
        view = taken.view(np.uint8)
        filled = 0
        with data_errors(self._source.where):
            while filled < view.size:
                part = self._stream.read(min(_READ, view.size - filled))
                if not part:
                    raise DataError(f"{self._source.where}: it ends before its last sample")
                view[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
                filled += len(part)
        return taken.reshape(shape)

    def close(self) -> None:
        self._stream.close()
        self._archive.close()


# --------------------------------------------------------------------------------------------------------------- joined


@dataclass(frozen=True)
class JoinedSource:
    """Several sources one after another, with samples of one shape and type. Only one file is open at a time."""

    parts: tuple[Source, ...]

    @property
    def where(self) -> str:
        return self.parts[0].where + (f" and {len(self.parts) - 1} more files" if len(self.parts) > 1 else "")

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def open(self) -> Cursor:
        return _JoinedCursor(self.parts)


def joined(parts: Sequence[Source]) -> Source:
    """The parts as one source; DataError that names the first part which differs from the one before it."""
    for part in parts:
        if not part.shape:
            raise DataError(f"{part.where} is a single number; expected an array of samples")
        if (part.dtype, part.shape[1:]) != (parts[0].dtype, parts[0].shape[1:]):
            raise DataError(
                f"{part.where} has samples of {part.dtype.name} {part.shape[1:]}; "
                f"expected {parts[0].dtype.name} {parts[0].shape[1:]} as in {parts[0].where}"
            )
    return parts[0] if len(parts) == 1 else JoinedSource(tuple(parts))


class _JoinedCursor:
    def __init__(self, parts: tuple[Source, ...]) -> None:
        self._parts = parts
        self._index = 0
        self._left = parts[0].shape[0]
        self._cursor = parts[0].open()

    def take(self, count: int) -> Array:
        self._skip_finished_parts()
        if count <= self._left:
            self._left -= count
            return self._cursor.take(count)
        # Copied part by part, as each array that is kept would keep its file open.
        part = self._parts[0]
        taken = np.empty((count, *part.shape[1:]), part.dtype)
        filled = 0
        while filled < count:
            self._skip_finished_parts()
            step = min(count - filled, self._left)
            taken[filled : filled + step] = self._cursor.take(step)
            self._left -= step
            filled += step
        return taken

    def _skip_finished_parts(self) -> None:
        while self._left == 0:
            self._cursor.close()
            self._index += 1
            self._left = self._parts[self._index].shape[0]
            self._cursor = self._parts[self._index].open()

    def close(self) -> None:
        self._cursor.close()
