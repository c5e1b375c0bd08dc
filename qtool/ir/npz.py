"""Saves and loads graphs as ``.npz``; the format is specified in ``README.md`` beside this file."""

from __future__ import annotations

import os
import re
from collections.abc import Sized
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote

import numpy as np

from qtool.errors import ModelError, OutputError
from qtool.ir.codec import Tables, bodies_of, decode, encode
from qtool.ir.files import atomic_write
from qtool.ir.graph import Array, Graph
from qtool.ir.jsontext import read_json, write_json
from qtool.ir.limits import MAX_JSON_BYTES, MAX_MEMBERS, shown
from qtool.ir.types import DType
from qtool.ir.verify import verify
from qtool.ir.zipreader import Archive, open_archive
from qtool.ir.zipwriter import write_archive

GRAPH, SCALES, ZERO_POINTS = "@graph.npy", "@scales.npy", "@zero_points.npy"
"""Members that are no initializers: ``@`` is escaped in the names of those."""
_BODY = re.compile(r"@body([1-9][0-9]{0,4})\.(.+)", re.DOTALL)
"""Begins the name of an initializer of a body: the number of the body, from 1, in the order of the JSON."""


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Writes the graph to ``path``, whole or not at all.

    ModelError if the graph breaks a rule of ``verify`` or cannot be read back; OutputError if it cannot be written.
    """
    members = _members(graph)
    try:
        with atomic_write(path) as file:
            write_archive(file, members)
    except MemoryError as error:
        raise OutputError(f"cannot write {path}: out of memory") from error


def file_bytes(graph: Graph) -> int:
    """The size of the file that ``save`` would write."""
    sink = _Counter()
    write_archive(sink, _members(graph))  # type: ignore[arg-type]  # all it does with a file is write
    return sink.count


class _Counter:
    """Takes what is written and keeps the number of bytes only."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: Sized) -> None:
        self.count += len(data)


def load(path: str | os.PathLike[str], *, check_sums: bool = True) -> Graph:
    """Reads a graph; its arrays are read-only views of the mapped file.

    Everything is checked before it is used, ``verify`` included; whatever is wrong is a ModelError that names the file.
    ``check_sums=False`` leaves the weights unread until they are used (the graph itself is always checked).
    """
    try:
        archive = open_archive(Path(path), MAX_MEMBERS)
        if GRAPH not in archive.members:
            _refuse_foreign(archive)
        graph = _read(archive)
        verify(graph)
        if check_sums:
            for name in archive.members:
                archive.check_sum(name)
        for one in (graph, *bodies_of(graph)):
            for name, array in one.initializers.items():
                _check_bool(name, array)
        return graph
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ModelError(f"{path}: it needs more memory than there is") from error


def _members(graph: Graph) -> list[tuple[str, Array]]:
    verify(graph)
    document, tables = encode(graph, _writer())
    text = write_json(document)
    if len(text) > MAX_JSON_BYTES:
        raise ModelError(f"the graph takes {len(text)} bytes of JSON; at most {MAX_JSON_BYTES} can be read back")
    members: list[tuple[str, Array]] = [(GRAPH, np.frombuffer(text, np.uint8))]
    members += [(n, t) for n, t in ((SCALES, tables.scales), (ZERO_POINTS, tables.zero_points)) if t.size]
    members += [(member_name(name), array) for name, array in graph.initializers.items()]
    for number, body in enumerate(bodies_of(graph), 1):
        members += [(f"@body{number}.{member_name(name)}", array) for name, array in body.initializers.items()]
    return members


def is_graph_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip archive that says it is a qtool model; it may still be a broken one."""
    try:
        return GRAPH in open_archive(Path(path), MAX_MEMBERS).members
    except ModelError:
        return False


def _read(archive: Archive) -> Graph:
    archive.check_tight()
    text = _special(archive, GRAPH, DType.UINT8)
    document = read_json(text.tobytes(), "its graph") if text.size <= MAX_JSON_BYTES else _refuse_long(text.size)
    tables = Tables(_special(archive, SCALES, DType.FLOAT32), _special(archive, ZERO_POINTS, DType.INT32))
    return decode(document, _arrays(archive), tables)


def _arrays(archive: Archive) -> list[dict[str, Array]]:
    """The initializers of the graph, then those of each body up to the last one that has any."""
    found: dict[int, dict[str, Array]] = {0: {}}
    for member in archive.members:
        if member in (GRAPH, SCALES, ZERO_POINTS):
            continue
        body = _BODY.fullmatch(member)
        number, name = (int(body[1]), body[2]) if body else (0, member)
        found.setdefault(number, {})[value_name(name)] = _initializer(archive, member)
    return [found.get(number, {}) for number in range(max(found) + 1)]


def _special(archive: Archive, member: str, dtype: DType) -> Array:
    """A one-dimensional member of a known type, checked against its sum; empty where it may be and is left out."""
    if member not in archive.members:
        return np.zeros(0, dtype.numpy)
    header = archive.header(member)
    if header.dtype != dtype.numpy or len(header.shape) != 1:
        got = f"{header.dtype.name} of shape {header.shape}"
        raise ModelError(f"member {shown(member)} is {got}; expected {dtype.value} with one axis")
    archive.check_sum(member)
    return archive.array(member, header)


def _initializer(archive: Archive, member: str) -> Array:
    header = archive.header(member)
    if header.fortran and len(header.shape) > 1:
        raise ModelError(f"member {shown(member)} is in Fortran order; expected C order")
    return archive.array(member, header)


def _check_bool(name: str, array: Array) -> None:
    # NumPy takes any other byte as true in one place and as its number in another.
    if array.dtype == np.bool_ and bool((array.view(np.uint8) > 1).any()):
        raise ModelError(f"initializer {shown(name)} is bool and holds bytes other than 0 and 1")


def member_name(name: str) -> str:
    """Letters, digits and ``_.-~`` stay; the rest is %-escaped, so a member's name is never a path."""
    return quote(name, safe="") + ".npy"


def value_name(member: str) -> str:
    """What ``member_name`` was made from; ModelError for a member that has another name."""
    name = unquote(member.removesuffix(".npy"), errors="replace")
    if not re.fullmatch(r"[A-Za-z0-9_.~%-]+\.npy", member) or member_name(name) != member:
        raise ModelError(f"member {shown(member)} is not named as an initializer is: no paths, and escaped with %")
    return name


def _refuse_foreign(archive: Archive) -> NoReturn:
    names = [shown(name.removesuffix(".npy")) for name in archive.members]
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise ModelError(
        f"it is an .npz archive of arrays ({some or 'none'}), not a qtool model, which has a member '@graph'. "
        "Models come from 'qtool import', 'qtool zoo' or 'qtool quantize'"
    )


def _refuse_long(size: int) -> NoReturn:
    raise ModelError(f"its graph has {size} bytes of JSON; at most {MAX_JSON_BYTES} are read")


def _writer() -> str:
    # Here, since it takes long to import and reading a model does not need it.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"qtool {version('qtool')}"
    except PackageNotFoundError:  # run from a source tree
        return "qtool"
