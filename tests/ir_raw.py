"""Zip archives made byte by byte, so that every field can lie."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Entry:
    """One member; None means the honest number. ``local_*`` change the header at the data, the others the directory."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    stored: int | None = None
    begin: int | None = None
    extra: bytes = b""
    local_name: str | None = None
    local_size: int | None = None
    in_directory_only: bool = False
    gap: bytes = b""
    """Bytes before the local header."""


def raw_zip(entries: list[Entry], between: bytes = b"", **end: int | bytes) -> bytes:
    """The archive; ``end`` sets fields of the end record (disk, here, count, size, offset), or adds extra_record."""
    out, directory = bytearray(), bytearray()
    for entry in entries:
        out += entry.gap
        begin = len(out) if entry.begin is None else entry.begin
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        stored = len(entry.data) if entry.stored is None else entry.stored
        name = entry.name.encode("utf-8")
        local_name = name if entry.local_name is None else entry.local_name.encode("utf-8")
        local_size = size if entry.local_size is None else entry.local_size
        fields = (20, entry.flags, entry.method, 0, 33, crc, stored, local_size, len(local_name), 0)
        if not entry.in_directory_only:
            out += struct.pack("<4s5H3L2H", b"PK\3\4", *fields) + local_name + entry.data
        fields = (
            20,
            20,
            entry.flags,
            entry.method,
            0,
            33,
            crc,
            stored,
            size,
            len(name),
            len(entry.extra),
            0,
            0,
            0,
            0,
            begin,
        )
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + name + entry.extra
    offset = len(out) + len(between)
    count = end.get("count", len(entries))
    numbers = (
        end.get("disk", 0),
        0,
        end.get("here", count),
        count,
        end.get("size", len(directory)),
        end.get("offset", offset),
    )
    record = struct.pack("<4s4H2LH", b"PK\5\6", *numbers, 0)
    return bytes(out + between + directory) + end.get("extra_record", b"") + record


def npy(array: np.ndarray) -> bytes:
    """An ``.npy`` file, pickled where the array holds objects."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), allow_pickle=True)
    return out.getvalue()


def npy_text(text: str, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """An ``.npy`` file whose header says ``text``."""
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) + 1) + text.encode("latin-1") + b"\n" + body


def deflated(data: bytes) -> bytes:
    """As zip archives compress."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def entries_of(members: dict[str, bytes]) -> list[Entry]:
    return [Entry(name, data) for name, data in members.items()]


def graph_of(members: dict[str, bytes]) -> dict:
    return json.loads(np.load(io.BytesIO(members["@graph.npy"])).tobytes())


def graph_member(document: object) -> bytes:
    """The member that holds a document, or JSON text as it is given."""
    text = (
        document
        if isinstance(document, bytes)
        else json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    return npy(np.frombuffer(text, np.uint8))
