"""Finds the arrays of a data file or folder: which belong to which input of the model, and which are the labels.

In an ``.npz`` file, and in a folder of ``.npy`` files, arrays are found by name:

====================  ===========================================================================
``x``                 the input of a model that has one
``<input>``           the input of that name
``y`` or ``labels``   class numbers, or targets (optional)
``<split>_x`` ...     the same for a split: ``calib_x``, ``calib_y``, ``test_x``, ``test_y``
====================  ===========================================================================

A folder may also hold pieces that follow one another in the order of their names: ``.npz`` files, each as above, or
``.npy`` files, each with one or more samples of the only input. A split can be a sub-folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.errors import DataError
from qtool.ir import Shape
from qtool.ir.limits import MAX_MEMBERS, shown
from qtool.ir.zipreader import open_archive
from qtool.quantize.data_combine import joined
from qtool.quantize.data_sources import (
    MappedSource,
    Source,
    as_one_sample,
    data_errors,
    member_source,
    npy_source,
)

LABELS = ("y", "labels")
_GRAPH = "@graph"


@dataclass(frozen=True)
class Found:
    """The arrays of each input, and of the labels if there are any."""

    columns: Mapping[str, Source]
    labels: Source | None


@dataclass(frozen=True)
class Wanted:
    """What is looked for: the model's inputs with their shapes, and a split (``""`` for none)."""

    inputs: Mapping[str, Shape]
    split: str

    def named(self, names: Iterable[str], where: Path, noun: str = "arrays") -> tuple[dict[str, str], str | None]:
        """Which name is which input, and which is the labels; DataError that lists what there is."""
        there = set(names)
        prefix = f"{self.split}_" if self.split else ""
        chosen: dict[str, str] = {}
        for name in self.inputs:
            spellings = [prefix + name] + ([prefix + "x"] if len(self.inputs) == 1 else [])
            match [spelling for spelling in spellings if spelling in there]:
                case [first, *_]:
                    chosen[name] = first
                case _:
                    raise DataError(f"{where}: {self._missing(spellings, there, noun)}")
        labels = [prefix + name for name in LABELS if prefix + name in there - set(chosen.values())]
        return chosen, labels[0] if labels else None

    def _missing(self, spellings: Sequence[str], there: set[str], noun: str) -> str:
        endings = tuple(f"_{ending}" for ending in (*self.inputs, "x"))
        splits = sorted({name[: -len(end)] for name in there for end in endings if name.endswith(end)} - {""})
        expected = " or ".join(f"'{spelling}'" for spelling in spellings)
        listed = ", ".join(shown(name) for name in sorted(there)[:10]) or "none"
        if splits and self.split not in splits:
            asked = f"there is no split {shown(self.split)}" if self.split else "a split has to be chosen ('split:')"
            return f"{asked}; the splits are {', '.join(map(shown, splits[:10]))}"
        return f"there is no {expected}; the {noun} are {listed}"


def find(path: Path, wanted: Wanted) -> Found:
    """The arrays of a file or folder of arrays. DataError says what is missing and what there is instead."""
    if path.is_dir():
        return _find_in_folder(path, wanted)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder")
    if path.suffix == ".npz":
        return _find_in_archive(path, wanted)
    if path.suffix == ".npy":
        if wanted.split:
            raise DataError(
                f"{path}: an .npy file has no splits; leave out 'split: {wanted.split}' or give an .npz file"
            )
        return Found({_only_input(path, wanted): npy_source(path)}, None)
    raise DataError(f"{path}: data are .npz or .npy files, or folders of them; this is {path.suffix or 'neither'}")


def files_of(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder in the order of their names, by suffix in lower case; hidden ones are left out."""
    found: dict[str, list[Path]] = {}
    with data_errors(str(folder)):
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and path.is_file():
                found.setdefault(path.suffix.lower(), []).append(path)
    return found


def enter_split(folder: Path, split: str) -> tuple[Path, str]:
    """The sub-folder of a split where there is one, and the split still to be looked for."""
    inner = folder / split
    return (inner, "") if split and Path(split).name == split and inner.is_dir() else (folder, split)


def _find_in_folder(folder: Path, wanted: Wanted) -> Found:
    files = files_of(folder)
    archives, arrays = files.get(".npz", []), files.get(".npy", [])
    if archives and arrays:
        raise DataError(f"{folder}: it holds both .npz and .npy files; expected one kind")
    if archives:
        return _joined([_find_in_archive(path, wanted) for path in archives])
    if arrays:
        return _find_in_arrays(folder, arrays, wanted)
    folders = ", ".join(shown(path.name) for path in sorted(folder.iterdir()) if path.is_dir())
    hint = f"; it has the folders {folders}: choose one with 'split:'" if folders else ""
    missing = f"there is no split {shown(wanted.split)}" if wanted.split else "there are no data"
    raise DataError(f"{folder}: {missing}: it holds no .npz or .npy files{hint}")


def _find_in_archive(path: Path, wanted: Wanted) -> Found:
    with data_errors(str(path)):
        archive = open_archive(path, MAX_MEMBERS)
    members = {name.removesuffix(".npy"): name for name in archive.members}
    if _GRAPH in members:
        raise DataError(f"{path}: this is a qtool model, not data")

    def source(name: str) -> Source:
        return member_source(archive, members[name], f"{path}: {shown(name)}")

    return _sources(wanted.named(members, path), source)


def _find_in_arrays(folder: Path, arrays: Sequence[Path], wanted: Wanted) -> Found:
    """``.npy`` files named like the members of an archive, or else pieces of the only input."""
    stems = {path.stem: path for path in arrays}
    labels = next((stems[name] for name in LABELS if name in stems and name not in wanted.inputs), None)
    named_like_members = {"x", *wanted.inputs} & stems.keys()
    if wanted.split or named_like_members or len(wanted.inputs) != 1:
        return _sources(wanted.named(stems, folder, "files"), lambda name: npy_source(stems[name]))
    name = _only_input(folder, wanted)
    pieces = [_piece(path, wanted.inputs[name]) for path in arrays if path != labels]
    if not pieces:
        raise DataError(f"{folder}: there are no data: it holds nothing but labels")
    return Found({name: joined(pieces)}, npy_source(labels) if labels else None)


def _piece(path: Path, shape: Shape) -> MappedSource:
    """A file of a folder: samples, or one sample without the batch axis."""
    source = npy_source(path)
    return as_one_sample(source) if len(source.shape) == len(shape) - 1 else source


def _sources(named: tuple[Mapping[str, str], str | None], source: Callable[[str], Source]) -> Found:
    chosen, labels = named
    return Found({name: source(array) for name, array in chosen.items()}, source(labels) if labels else None)


def _joined(pieces: Sequence[Found]) -> Found:
    columns = {name: joined([piece.columns[name] for piece in pieces]) for name in pieces[0].columns}
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    if labels and len(labels) != len(pieces):
        without = next(piece for piece in pieces if piece.labels is None)
        where = next(iter(without.columns.values())).where
        raise DataError(f"{where}: the file has no labels, and other files of the folder do; expected all or none")
    return Found(columns, joined(labels) if labels else None)


def _only_input(path: Path, wanted: Wanted) -> str:
    match tuple(wanted.inputs):
        case (name,):
            return name
    names = ", ".join(map(shown, wanted.inputs))
    raise DataError(f"{path}: the model has the inputs {names}; expected an .npz file with arrays of those names")
