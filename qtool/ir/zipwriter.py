"""Writes a zip archive of stored arrays, each aligned to 64 bytes, with zip64 records where sizes need them.

Python's ``zipfile`` would do all but the alignment: it copies the padding of each local header into the directory as
well. The layout is PKWARE's APPNOTE 6.3; the padding is the extra field 0xD935 that Android's ``zipalign`` uses.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from qtool.ir.graph import Array
from qtool.ir.npyformat import ALIGNMENT, make_header

SEE_ZIP64, SEE_ZIP64_COUNT = 0xFFFFFFFF, 0xFFFF
"""Stand in a short field for a number that the zip64 record gives."""
ZIP64_FROM = SEE_ZIP64
"""Sizes and offsets from here on go to zip64 records."""
_DATE = 33
"""1980-01-01, so that equal graphs give equal files."""
_VERSION, _VERSION_ZIP64 = 20, 45
_UNIX_FILE = (3 << 8, 0o100644 << 16)
"""Made by Unix; the mode a member gets when it is unpacked."""
_PADDING_ID = 0xD935


def write_archive(file: BinaryIO, members: Iterable[tuple[str, Array]]) -> None:
    """Writes ``(member name, array)`` pairs in order; names are ASCII. Arrays are not copied when C-contiguous."""
    offset, directory, count = 0, bytearray(), 0
    for name, array in members:
        written, entry = _write_member(file, offset, name.encode("ascii"), array)
        offset += written
        directory += entry
        count += 1
    file.write(directory)
    file.write(_end_records(count, len(directory), offset))


def _write_member(file: BinaryIO, offset: int, name: bytes, array: Array) -> tuple[int, bytes]:
    little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    header = make_header(little.dtype, little.shape)
    body = little.reshape(-1).view(np.uint8).data
    crc = zlib.crc32(body, zlib.crc32(header))
    size = len(header) + little.nbytes

    short, extra = _zip64_extra(size, size)
    version = _VERSION_ZIP64 if extra else _VERSION
    extra += _padding(offset + 30 + len(name) + len(extra))
    fields = (version, 0, 0, 0, _DATE, crc, *short, len(name), len(extra))
    local = struct.pack("<4s5H3L2H", b"PK\3\4", *fields)
    for part in (local, name, extra, header, body):
        file.write(part)
    return len(local) + len(name) + len(extra) + size, _directory_entry(offset, name, crc, size)


def _directory_entry(offset: int, name: bytes, crc: int, size: int) -> bytes:
    (stored, expanded, start), extra = _zip64_extra(size, size, offset)
    version = _VERSION_ZIP64 if extra else _VERSION
    made_by, mode = _UNIX_FILE
    numbers = (made_by | version, version, 0, 0, 0, _DATE, crc, stored, expanded)
    lengths = (len(name), len(extra), 0, 0, 0, mode, start)
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", *numbers, *lengths) + name + extra


def _zip64_extra(*numbers: int) -> tuple[list[int], bytes]:
    """The 32-bit fields for sizes and offsets, and the extra field that gives those which do not fit."""
    large = [n for n in numbers if n >= ZIP64_FROM]
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    return [SEE_ZIP64 if n in large else n for n in numbers], extra


def _padding(position: int) -> bytes:
    """An extra field that moves ``position`` to the next multiple of 64."""
    gap = -position % ALIGNMENT
    if gap == 0:
        return b""
    if gap < 6:  # the field's own head takes that much
        gap += ALIGNMENT
    return struct.pack("<3H", _PADDING_ID, gap - 4, ALIGNMENT) + bytes(gap - 6)


def _end_records(count: int, size: int, offset: int) -> bytes:
    """The end of the archive; the zip64 record and its locator before it where a number is too large for it."""
    if count < SEE_ZIP64_COUNT and max(size, offset) < ZIP64_FROM:
        return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, offset, 0)
    fields = (44, _VERSION_ZIP64, _VERSION_ZIP64, 0, 0, count, count, size, offset)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", *fields)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)
    see = (SEE_ZIP64_COUNT, SEE_ZIP64_COUNT, SEE_ZIP64, SEE_ZIP64)
    return record + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *see, 0)
