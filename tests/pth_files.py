"""Writes checkpoint files byte by byte, good and hostile ones, as torch.save would."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qtool.errors import ModelError
from qtool.frontends import read_state_dict
from qtool.frontends.pth import LEGACY_MAGIC, LEGACY_PROTOCOL

# A writer of pickles in torch's words: each function gives the opcodes that push one object.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(20, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dict_of(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(function: str, *args: bytes) -> bytes:
    return name(function) + tuple_of(*args) + b"R"


def storage(key: str, numel: int, kind: str = "torch.FloatStorage", *more: bytes) -> bytes:
    return tuple_of(text("storage"), name(kind), text(key), text("cpu"), integer(numel), *more) + b"Q"


def counts(values: tuple[int, ...]) -> bytes:
    return tuple_of(*map(integer, values))


def tensor(stored: bytes, size: tuple[int, ...], stride: tuple[int, ...] | None = None, offset: int = 0) -> bytes:
    if stride is None:
        stride = tuple(int(np.prod(size[axis + 1 :])) for axis in range(len(size)))
    hooks = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2", stored, integer(offset), counts(size), counts(stride), b"\x89", hooks
    )


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def zip_file(
    path: Path,
    body: bytes,
    records: dict[str, bytes] | None = None,
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(body))
        for key, data in (records or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for key, data in (extra or {"archive/byteorder": b"little", "archive/version": b"3\n"}).items():
            archive.writestr(key, data)
    return path


def state_file(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A state dict of float32 tensors."""
    tensors = {
        key: tensor(storage(str(number), array.size), array.shape) for number, (key, array) in enumerate(arrays.items())
    }
    body = dict_of(tensors)
    return zip_file(path, body, {str(number): array.tobytes() for number, array in enumerate(arrays.values())})


def legacy_file(path: Path, body: bytes, storages: dict[str, np.ndarray], little: bool = True) -> Path:
    head = [LEGACY_MAGIC, LEGACY_PROTOCOL, {"protocol_version": LEGACY_PROTOCOL, "little_endian": little}]
    data = b"".join(pickle.dumps(part, 2) for part in head) + pickled(body) + pickle.dumps(list(storages), 2)
    for array in storages.values():
        data += struct.pack("<q", array.size) + array.tobytes()
    path.write_bytes(data)
    return path


NUMBERS = np.arange(12, dtype=np.float32) / 3
GOOD = dict_of({"w": tensor(storage("0", 12), (3, 4))})


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def refused_body(tmp_path: Path, body: bytes, message: str) -> None:
    refused(zip_file(tmp_path / "hostile.pth", body, {"0": NUMBERS.tobytes()}), message)
    # The older format lists the storages that its tensors name, and only those.
    storages = {"0": NUMBERS} if b"torch" in body else {}
    refused(legacy_file(tmp_path / "hostile.th", body, storages), message)
