"""Arrays on disk as streams of samples: mapped where they lie plain in their file, else decompressed as they are read.

Nothing here holds more of a file than the samples that were asked for.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
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

    def skip(self, count: int) -> None:
        """Passes over the next ``count`` samples; there must be that many left."""

    def pick(self, numbers: Array) -> Array:
        """The samples of those numbers (int64), wherever the cursor is, C-contiguous."""

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

    def skip(self, count: int) -> None:
        self._at += count

    def pick(self, numbers: Array) -> Array:
        return np.ascontiguousarray(self._array[numbers])

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
        self._spooled: Array | None = None

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

    def skip(self, count: int) -> None:
        for step in steps_of(self._source, count):
            self.take(step)

    def pick(self, numbers: Array) -> Array:
        if self._spooled is None:
            self._spooled = spooled(self._source)
        return np.ascontiguousarray(self._spooled[numbers])

    def close(self) -> None:
        self._spooled = None
        self._stream.close()
        self._archive.close()


def steps_of(source: Source, count: int) -> Iterator[int]:
    """``count`` samples cut into pieces of about a megabyte."""
    step = max(1, _READ // max(1, math.prod(source.shape[1:]) * source.dtype.itemsize))
    yield from (min(step, count - start) for start in range(0, count, step))


def spooled(source: Source) -> Array:
    """All samples, in a temporary file that is mapped: in any order, where a source is only read from its beginning."""
    with data_errors(source.where), closing(source.open()) as cursor, tempfile.TemporaryFile() as file:
        for step in steps_of(source, source.shape[0]):
            file.write(cursor.take(step).tobytes())
        file.flush()
        if not file.tell():
            return np.zeros(source.shape, source.dtype)
        return np.memmap(file, source.dtype, "r", 0, source.shape).view(np.ndarray)
