"""Reads the directory of a zip archive and maps its members, checking every number against the file before use.

Python's ``zipfile`` makes an object of every directory entry it is told of, so a hostile file costs it unbounded
memory; it also accepts overlapping members. Here counts and sizes are bounded first, and nothing is expanded.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtool.errors import ModelError
from qtool.ir.graph import Array
from qtool.ir.limits import MAX_FILE_BYTES, shown
from qtool.ir.npyformat import MAX_HEADER, NpyHeader, parse_header

STORED, DEFLATED = 0, 8
_ENCRYPTED, _DESCRIPTOR = 1, 8
_SEE_ZIP64 = 0xFFFFFFFF
_MAX_MEMBER_NAME = 4096
_CRC_CHUNK = 1 << 24

Buffer = mmap.mmap | bytes


@dataclass(frozen=True)
class Member:
    """One entry: ``stored`` bytes from ``start`` on, ``size`` once expanded; its local header is at ``begin``."""

    name: str
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    begin: int
    start: int

    @property
    def is_plain(self) -> bool:
        """Stored as it is, so that it can be mapped."""
        return self.method == STORED and self.stored == self.size and not self.flags & _ENCRYPTED


@dataclass(frozen=True)
class Archive:
    """A file mapped into memory and the members found in it. The mapping lives as long as any array made of it."""

    path: Path
    buffer: Buffer
    members: Mapping[str, Member]
    directory: int
    """Offset of the directory: where the members end."""

    def header(self, name: str) -> NpyHeader:
        """The array header of a plain member; ModelError if it is not one, or is not as long as the header says."""
        member = self.members[name]
        if not member.is_plain:
            raise ModelError(f"member {shown(name)} is compressed or encrypted; expected it stored as it is")
        head = bytes(self.buffer[member.start : member.start + min(member.size, MAX_HEADER)])
        header = parse_header(head, f"member {shown(name)}")
        if header.offset + header.nbytes != member.size:
            raise ModelError(
                f"member {shown(name)} has {member.size - header.offset} bytes of elements; "
                f"expected {header.nbytes} for {header.dtype.name} of shape {header.shape}"
            )
        return header

    def array(self, name: str, header: NpyHeader) -> Array:
        """The read-only array of that header over the mapped file; a copy where it lies misaligned."""
        shape = header.shape[::-1] if header.fortran else header.shape
        flat = np.zeros(0, header.dtype)
        if header.nbytes:
            count = header.nbytes // header.dtype.itemsize
            flat = np.frombuffer(self.buffer, header.dtype, count, self.members[name].start + header.offset)
        array = np.require(flat, requirements="A").reshape(shape)
        array.setflags(write=False)
        return array.T if header.fortran else array

    def check_sum(self, name: str) -> None:
        """ModelError if the bytes of a member are not those that were written."""
        member = self.members[name]
        crc, end = 0, member.start + member.size
        with memoryview(self.buffer) as view:
            for begin in range(member.start, end, _CRC_CHUNK):
                crc = zlib.crc32(view[begin : min(begin + _CRC_CHUNK, end)], crc)
        if crc != member.crc:
            raise ModelError(f"member {shown(name)} is damaged: its check sum is not the one recorded")

    def check_tight(self) -> None:
        """ModelError unless the members follow one another from the first byte to the directory, each stored plainly.

        Then no two overlap, and no byte of the file can mean something else to another reader.
        """
        position = 0
        for member in sorted(self.members.values(), key=lambda m: m.begin):
            if not member.is_plain or member.flags & _DESCRIPTOR:
                raise ModelError(
                    f"member {shown(member.name)} is compressed or encrypted; models are stored as they are"
                )
            if member.begin != position:
                word = "overlaps the one before it" if member.begin < position else "does not follow the one before it"
                raise ModelError(f"member {shown(member.name)} {word}: at byte {member.begin}, expected {position}")
            position = member.start + member.stored
        if position != self.directory:
            raise ModelError(
                f"{self.directory - position} bytes between the last member and the directory; expected none"
            )


def open_archive(path: Path, max_members: int) -> Archive:
    """Maps a zip archive and reads its directory. ModelError for anything that is not one, or is broken."""
    buffer = map_file(path)
    if bytes(buffer[:4]) not in (b"PK\3\4", b"PK\5\6"):
        raise ModelError(f"it begins with {shown(bytes(buffer[:4]))}, so it is not a zip archive (.npz)")
    count, size, directory = _end_record(buffer)
    if count > max_members:
        raise ModelError(f"its directory lists {count} members; at most {max_members} are read")
    members: dict[str, Member] = {}
    position, end = directory, directory + size
    for _ in range(count):
        member, position = _directory_entry(buffer, position, end)
        if member.name in members:
            raise ModelError(f"member {shown(member.name)} is there twice")
        members[member.name] = _located(buffer, member, directory)
    if position != end:
        raise ModelError(f"its directory has {end - position} bytes more than its {count} members take")
    return Archive(path, buffer, members, directory)


def map_file(path: Path) -> Buffer:
    """The file's bytes, memory-mapped where the system can, read where it cannot; ModelError if that is impossible."""
    try:
        if not path.is_file():
            raise ModelError("it is a folder or a device" if path.exists() else "there is no such file")
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ModelError("it is empty")
            if size > MAX_FILE_BYTES:
                raise ModelError(f"it has {size} bytes; at most {MAX_FILE_BYTES} are read")
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # some network and FUSE file systems cannot map
                file.seek(0)
                return file.read()
    except (OSError, ValueError) as error:
        raise ModelError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _end_record(buffer: Buffer) -> tuple[int, int, int]:
    """Members, size and offset of the directory, which must end where the end records begin."""
    at = len(buffer) - 22
    if at < 0 or bytes(buffer[at : at + 4]) != b"PK\5\6":
        raise ModelError("the zip archive is cut off or has something behind it: its end record is missing")
    disk, first, here, count, size, offset, comment = struct.unpack_from("<4H2LH", buffer, at + 4)
    if 0xFFFF in (here, count) or _SEE_ZIP64 in (size, offset):
        at, count, size, offset = _zip64_end_record(buffer, at)
        here = count
    if disk or first or comment or here != count:
        raise ModelError("the zip archive is one part of several, or has a comment; expected one whole file")
    if offset + size != at or count > size // 46:
        raise ModelError(
            f"the zip archive's directory ({count} members, {size} bytes at {offset}) does not fit the file"
        )
    return count, size, offset


def _zip64_end_record(buffer: Buffer, end: int) -> tuple[int, int, int, int]:
    locator = end - 20
    if locator < 56 or bytes(buffer[locator : locator + 4]) != b"PK\6\7":
        raise ModelError("the zip archive's zip64 locator is missing")
    disk, at, disks = struct.unpack_from("<LQL", buffer, locator + 4)
    if disk or disks != 1 or at != locator - 56 or bytes(buffer[at : at + 4]) != b"PK\6\6":
        raise ModelError("the zip archive's zip64 end record is missing or not where it should be")
    length, _, _, disk, first, here, count, size, offset = struct.unpack_from("<Q2H2L4Q", buffer, at + 4)
    if length != 44 or disk or first or here != count:
        raise ModelError("the zip archive's zip64 end record is broken")
    return at, count, size, offset


def _directory_entry(buffer: Buffer, position: int, end: int) -> tuple[Member, int]:
    """The member at ``position`` of the directory (its data not located yet), and where the next one begins."""
    if position + 46 > end or bytes(buffer[position : position + 4]) != b"PK\1\2":
        raise ModelError("the zip archive's directory is broken or shorter than it says")
    fields = struct.unpack_from("<6H3L5H2L", buffer, position + 4)
    flags, method, crc, stored, size, name_bytes, extra_bytes, comment_bytes = (*fields[2:4], *fields[6:12])
    name_at = position + 46
    extra_at = name_at + name_bytes
    following = extra_at + extra_bytes + comment_bytes
    if following > end or not 0 < name_bytes <= _MAX_MEMBER_NAME:
        raise ModelError("the zip archive's directory has an entry with a broken name")
    name = bytes(buffer[name_at:extra_at]).decode("utf-8", "backslashreplace")
    extra = bytes(buffer[extra_at : extra_at + extra_bytes])
    size, stored, begin = _full_numbers(extra, (size, stored, fields[15]), name)
    return Member(name, flags, method, crc, stored, size, begin, 0), following


def _full_numbers(extra: bytes, short: tuple[int, int, int], name: str) -> tuple[int, int, int]:
    """Size, stored size and offset: those marked in the entry are taken from its zip64 field, in this order."""
    numbers = list(short)
    missing = [i for i, number in enumerate(numbers) if number == _SEE_ZIP64]
    if missing:
        values = _zip64_field(extra)
        if len(values) < len(missing):
            raise ModelError(f"member {shown(name)} lacks its zip64 sizes")
        for i, value in zip(missing, values, strict=False):
            numbers[i] = value
    return numbers[0], numbers[1], numbers[2]


def _zip64_field(extra: bytes) -> tuple[int, ...]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == 1:
            return struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8])
        at += 4 + length
    return ()


def _located(buffer: Buffer, member: Member, directory: int) -> Member:
    """The member with the place of its data, after its local header is found to agree with the directory."""
    begin = member.begin
    if begin + 30 > directory or bytes(buffer[begin : begin + 4]) != b"PK\3\4":
        raise ModelError(f"member {shown(member.name)} is not where the directory says (byte {begin})")
    fields = struct.unpack_from("<5H3L2H", buffer, begin + 4)
    flags, method, name_bytes, extra_bytes = fields[1], fields[2], fields[8], fields[9]
    name = bytes(buffer[begin + 30 : begin + 30 + name_bytes]).decode("utf-8", "backslashreplace")
    if (name, flags, method) != (member.name, member.flags, member.method):
        raise ModelError(f"member {shown(member.name)} is {shown(name)}, or of another kind, where its data are")
    start = begin + 30 + name_bytes + extra_bytes
    if not flags & _DESCRIPTOR:
        extra = bytes(buffer[start - extra_bytes : start])
        sizes = _full_numbers(extra, (fields[7], fields[6], 0), name)[:2]
        if (fields[5], *sizes) != (member.crc, member.size, member.stored):
            raise ModelError(f"member {shown(name)} has another size or check sum in the directory than at its data")
    if start + member.stored > directory:
        raise ModelError(f"member {shown(member.name)} reaches past the end of the members: {member.stored} bytes")
    return Member(name, flags, method, member.crc, member.stored, member.size, begin, start)
