"""The state of a training in a file, to go on from: arrays by name, and what they belong to.

An ``.npz`` archive as models are, ``qtool.checkpoint/1``: the member ``@checkpoint`` is JSON, the others are arrays,
stored as they are. It is written whole or not at all, and everything is checked when it is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qtool.errors import ModelError, RecipeError
from qtool.ir import EMPTY, Array, Graph, Json
from qtool.ir.files import atomic_write
from qtool.ir.jsontext import read_json, write_json
from qtool.ir.limits import MAX_MEMBERS, shown
from qtool.ir.npz import member_name, value_name
from qtool.ir.zipreader import Archive, open_archive
from qtool.ir.zipwriter import write_archive
from qtool.recipe.schema import Recipe

SCHEMA = "qtool.checkpoint/1"
_HEADER = "@checkpoint.npy"
_SHOWN = 4


@dataclass(frozen=True)
class Checkpoint:
    """After ``epoch`` epochs and ``step`` steps; ``best`` is the best metric so far (a finite number).

    ``settings`` are all that decides how training goes on (see ``settings_of``), ``record`` is whatever else is to be
    kept, such as the loss of each epoch.
    """

    arrays: Mapping[str, Array]
    epoch: int
    step: int
    best: float | None
    settings: Mapping[str, Json]
    record: Mapping[str, Json] = field(default_factory=lambda: EMPTY)


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint in the place of the one before. OutputError where it cannot be written."""
    text = write_json(
        {
            "schema": SCHEMA,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "best": checkpoint.best,
            "settings": dict(checkpoint.settings),
            "record": dict(checkpoint.record),
        }
    )
    members = [(_HEADER, np.frombuffer(text, np.uint8))]
    members += [(member_name(name), array) for name, array in checkpoint.arrays.items()]
    with atomic_write(path) as file:
        write_archive(file, members)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint; its arrays are copies, to be trained. ModelError, with the file, for whatever is wrong."""
    try:
        archive = open_archive(Path(path), MAX_MEMBERS)
        if _HEADER not in archive.members:
            raise ModelError("it is no checkpoint of a training, which has a member '@checkpoint'")
        archive.check_tight()
        for name in archive.members:
            archive.check_sum(name)
        header = read_json(_array(archive, _HEADER).tobytes(), "its header")
        names = [name for name in archive.members if name != _HEADER]
        return _checkpoint(header, {value_name(name): _array(archive, name).copy() for name in names})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ModelError(f"{path}: it needs more memory than there is") from error


def check_settings(checkpoint: Checkpoint, settings: Mapping[str, Json], path: str | os.PathLike[str]) -> None:
    """RecipeError, with what differs, unless the checkpoint is of a training with these settings."""
    then, now = dict(_flat("", checkpoint.settings)), dict(_flat("", settings))
    differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not differing:
        return
    told = [f"{key} was {_told(then, key)} and is {_told(now, key)}" for key in differing[:_SHOWN]]
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    raise RecipeError(
        f"{path}: the checkpoint is of another training: {'; '.join(told)}{more}. "
        "Go on with the recipe it was made by, or train anew"
    )


def settings_of(recipe: Recipe, graph: Graph) -> dict[str, Json]:
    """What decides on a training: the float model (a hash), and those of the recipe's keys that training depends on."""
    keys = ("mode", "backend", "qconfig_dict", "fuse", "equalize", "stubs", "calibration", "train", "head")
    plain = {key: recipe.resolved[key] for key in keys if key in recipe.resolved}
    if "train" in plain:
        plain["train"] = {key: value for key, value in plain["train"].items() if key != "checkpoint"}
    return {"model": model_hash(graph), **plain}


def model_hash(graph: Graph) -> str:
    """SHA-256 of operators and weights, as 64 hexadecimal digits; without names of the file and what made it."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        digest.update(repr((node.op, node.inputs, node.outputs, sorted(node.attrs.items()))).encode())
        for name, body in sorted(node.graphs.items()):
            digest.update(f"{name}={model_hash(body)};".encode())
    for name, array in sorted(graph.initializers.items()):
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        digest.update(f"{name}={little.dtype.name}{little.shape};".encode())
        digest.update(little.reshape(-1).view(np.uint8).data)
    digest.update(repr((graph.inputs, graph.outputs)).encode())
    return digest.hexdigest()


def _array(archive: Archive, member: str) -> Array:
    header = archive.header(member)
    if header.fortran and len(header.shape) > 1:
        raise ModelError(f"member {shown(member)} is in Fortran order; expected C order")
    if member == _HEADER and (header.dtype != np.uint8 or len(header.shape) != 1):
        raise ModelError(f"its header is {header.dtype.name} of shape {header.shape}; expected bytes")
    return archive.array(member, header)


def _checkpoint(header: Json, arrays: Mapping[str, Array]) -> Checkpoint:
    """The checkpoint of a header that may say anything."""
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        got = header.get("schema") if isinstance(header, dict) else header
        raise ModelError(f"its schema is {shown(got)}; expected {SCHEMA!r}: it was made by another version")
    epoch, step, best = header.get("epoch"), header.get("step"), header.get("best")
    settings, record = header.get("settings"), header.get("record")
    for key, value in (("epoch", epoch), ("step", step)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(f"its {key} is {shown(value)}; expected a whole number from 0")
    if isinstance(best, bool) or not isinstance(best, (int, float, type(None))):
        raise ModelError(f"its best metric is {shown(best)}; expected a number or null")
    if not isinstance(settings, dict) or not isinstance(record, dict):
        raise ModelError("its settings or its record are no mapping")
    assert isinstance(epoch, int)  # as was checked
    assert isinstance(step, int)
    return Checkpoint(arrays, epoch, step, best, settings, record)


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    """The plain values in a mapping, each by its dotted path; lists are values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, list(value) if isinstance(value, tuple) else value


def _told(values: Mapping[str, object], key: str) -> str:
    return shown(values[key]) if key in values else "left out"
