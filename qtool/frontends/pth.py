"""Reads the weights of PyTorch checkpoints (``.pth``, ``.pt``, ``.th``) without torch.

Two formats of ``torch.save`` are read: the zip archive (torch >= 1.6) and the older stream of pickles. Storages are raw
little-endian numbers in both; a pickle describes the tensors as views of them. What the pickle may hold is decided in
``unpickle.py``: tensors in plain containers. Source of the formats: ``torch/serialization.py``, ``_save`` and
``_legacy_save``.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from qtool.errors import ModelError
from qtool.frontends.unpickle import Admitted, load, put_item
from qtool.ir import Array

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 64 * 2**20
MAX_NDIM = 16
NESTED_UNDER = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state dict of a checkpoint."""


@dataclass(frozen=True)
class _Element:
    """How a storage's numbers lie in the file; ``widen`` marks bfloat16, which NumPy does not have."""

    numpy: str
    widen: bool = False

    @property
    def size(self) -> int:
        return np.dtype(self.numpy).itemsize


_STORAGES: Mapping[str, _Element] = {
    "torch.FloatStorage": _Element("<f4"),
    "torch.DoubleStorage": _Element("<f8"),
    "torch.HalfStorage": _Element("<f2"),
    "torch.BFloat16Storage": _Element("<u2", widen=True),
    "torch.LongStorage": _Element("<i8"),
    "torch.IntStorage": _Element("<i4"),
    "torch.ShortStorage": _Element("<i2"),
    "torch.CharStorage": _Element("<i1"),
    "torch.ByteStorage": _Element("<u1"),
    "torch.BoolStorage": _Element("|b1"),
}


@dataclass(frozen=True)
class _Storage:
    key: str
    element: _Element
    numel: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in elements; checked to lie inside it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


Fetch = Callable[[str], memoryview]
"""Gives the bytes of the storage with this key."""


def read_state_dict(path: Path | str) -> dict[str, Array]:
    """Every tensor of a PyTorch checkpoint by its state-dict key, as read-only arrays.

    A checkpoint may be the state dict itself or hold it under ``state_dict``, ``model_state_dict`` or ``model``; the
    prefix ``module.`` of DataParallel is removed. float16 and bfloat16 become float32; the other dtypes stay.
    Raises ModelError for a file that cannot be read, is broken, or holds anything but tensors and plain containers.
    """
    path = Path(path)
    try:
        with _opened(path) as (content, fetch):
            return _strip_module(_materialize(_find_state(content), fetch))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Fetch]]:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise ModelError("the file is empty")
        if file.read(4) == b"PK\x03\x04":
            with _open_zip(file, path.stat().st_size) as opened:
                yield opened
            return
        # Mapped, not read: reading n bytes of a mapping never allocates more than the file has.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield _open_legacy(mapped)


# The zip archive: `<name>/data.pkl` and a record `<name>/data/<key>` a storage, all stored uncompressed.


@contextlib.contextmanager
def _open_zip(file: IO[bytes], file_bytes: int) -> Iterator[tuple[Any, Fetch]]:
    try:
        with zipfile.ZipFile(file) as archive:
            prefix = _check_archive(archive, file_bytes)

            def fetch(key: str) -> memoryview:
                return memoryview(_read_record(archive, f"{prefix}/data/{key}"))

            content = _load_pickle(_read_record(archive, f"{prefix}/data.pkl"))
            yield content, fetch
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, RuntimeError) as error:
        raise ModelError(f"the zip archive is broken: {str(error)[:200]}") from error


def _check_archive(archive: zipfile.ZipFile, file_bytes: int) -> str:
    """The name all records begin with; refuses archives that unpack to more than they are."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelError("the archive is compressed; torch.save never compresses")
    if sum(entry.file_size for entry in entries) > file_bytes:
        raise ModelError("the archive's records are larger than the file: they overlap or are cut off")
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelError("the archive has no single data.pkl: it was not written by torch.save")
    prefix = pickles[0].removesuffix("/data.pkl")
    names = set(archive.namelist())
    if f"{prefix}/constants.pkl" in names:
        raise ModelError(
            "this is a TorchScript program; save the weights alone with torch.save(model.state_dict(), path)"
        )
    if f"{prefix}/byteorder" in names and _read_record(archive, f"{prefix}/byteorder") != b"little":
        raise ModelError("the archive was written on a big-endian machine, which is not supported")
    if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
        raise ModelError(f"data.pkl is larger than {MAX_PICKLE_BYTES} bytes")
    return prefix


def _read_record(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise ModelError(f"the archive has no record {name[:200]!r}") from None


# The older stream: magic number, protocol, system, object, storage keys (a pickle each), then the storages in order.


def _open_legacy(mapped: mmap.mmap) -> tuple[Any, Fetch]:
    stream = cast("IO[bytes]", mapped)
    if mapped[:1] != b"\x80" or _load_plain(stream) != LEGACY_MAGIC:
        raise ModelError("this is not a file of torch.save")
    if _load_plain(stream) != LEGACY_PROTOCOL:
        raise ModelError(f"the file is not of protocol {LEGACY_PROTOCOL}")
    system = _load_plain(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ModelError("the file was written on a big-endian machine, which is not supported")
    declared: dict[str, _Storage] = {}
    content = load(stream, _admitted(declared))
    positions = _legacy_positions(mapped, _load_plain(stream), declared)

    def fetch(key: str) -> memoryview:
        if key not in positions:
            raise ModelError(f"the storage {key[:200]!r} is missing")
        start, size = positions[key]
        return memoryview(mapped[start : start + size])

    return content, fetch


def _legacy_positions(mapped: mmap.mmap, keys: Any, declared: Mapping[str, _Storage]) -> dict[str, tuple[int, int]]:
    """Start and length in bytes of every storage. Each begins with its number of elements as int64."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ModelError("the list of storages is broken")
    positions: dict[str, tuple[int, int]] = {}
    at = mapped.tell()
    for key in keys:
        if key not in declared:
            raise ModelError(f"the storage {key[:200]!r} belongs to no tensor")
        size = declared[key].numel * declared[key].element.size
        if at + 8 + size > len(mapped):
            raise ModelError(f"the file ends inside the storage {key[:200]!r}")
        (numel,) = struct.unpack("<q", mapped[at : at + 8])
        if numel != declared[key].numel:
            raise ModelError(f"the storage {key[:200]!r} has {numel} elements, its tensors say {declared[key].numel}")
        positions[key] = (at + 8, size)
        at += 8 + size
    return positions


# The pickle.


def _load_pickle(data: bytes) -> Any:
    return load(io.BytesIO(data), _admitted({}))


def _load_plain(stream: IO[bytes]) -> Any:
    """A pickle without tensors."""

    def refuse(_: Any) -> Any:
        raise ModelError("a storage stands where none belongs")

    return load(stream, Admitted({}, {}, refuse))


def _admitted(declared: dict[str, _Storage]) -> Admitted:
    """The globals a state dict needs; ``declared`` is filled with the storages that are named."""

    def persistent(pid: Any) -> _Storage:
        storage = _parse_storage(pid)
        if declared.setdefault(storage.key, storage) != storage:
            raise ModelError(f"the storage {storage.key[:200]!r} is described in two ways")
        return storage

    calls: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _ordered_dict,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch.nn.parameter.Parameter": _rebuild_parameter,
    }
    return Admitted(calls, _STORAGES, persistent)


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    if not isinstance(pairs, (list, tuple)):
        raise ModelError("an OrderedDict is made of something that is not a list")
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ModelError("an OrderedDict is made of something that is not a pair")
        put_item(made, *pair)
    return made


def _parse_storage(pid: Any) -> _Storage:
    """Persistent id: ("storage", class, key, device, number of elements), in the older format and a view (None)."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise ModelError("a persistent id does not describe a storage")
    _, element, key, _, numel = pid[:5]
    if not isinstance(element, _Element) or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise ModelError("the description of a storage is broken")
    if len(pid) == 6 and pid[5] is not None:
        raise ModelError("views of storages (torch before 0.4) are not supported; load and save with a newer torch")
    return _Storage(key, element, numel)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    """``torch._utils._rebuild_tensor_v2``; what follows (requires_grad, hooks, metadata) is of no use here."""
    if not isinstance(storage, _Storage) or not _is_count(offset):
        raise ModelError("the description of a tensor is broken")
    if not _are_counts(size) or not _are_counts(stride) or len(size) != len(stride) or len(size) > MAX_NDIM:
        raise ModelError("the shape or stride of a tensor is broken")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # More elements than the storage has would be an expanded tensor (stride 0): a few bytes that unpack to anything.
    fits = last < storage.numel and count <= storage.numel if count else math.prod(n or 1 for n in size) < 2**31
    if not fits:
        raise ModelError(
            f"a tensor of shape {size}, stride {stride} and offset {offset} does not fit its storage of "
            f"{storage.numel} elements"
        )
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(data: Any, *_: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise ModelError("a Parameter is made of something that is not a tensor")
    return data


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(map(_is_count, values))


# From the unpickled object to arrays.


def _find_state(content: Any) -> dict[str, _Tensor]:
    """The state dict inside a checkpoint, every entry of it a tensor."""
    for key in NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise ModelError(f"the file holds a {type(content).__name__.lstrip('_')}; expected a state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, _Tensor):
            kind = type(value).__name__.lstrip("_")
            raise ModelError(
                f"the entry {str(key)[:200]!r} is a {kind}; expected a tensor (a state dict holds nothing else)"
            )
    if not content:
        raise ModelError("the state dict is empty")
    return content


def _materialize(state: Mapping[str, _Tensor], fetch: Fetch) -> dict[str, Array]:
    storages: dict[str, Array] = {}
    made: dict[str, Array] = {}
    for key, tensor in state.items():
        name = tensor.storage.key
        if name not in storages:
            storages[name] = _decode(tensor.storage, fetch(name))
        made[key] = _view(storages[name], tensor)
    return made


def _decode(storage: _Storage, data: memoryview) -> Array:
    element = storage.element
    if data.nbytes != storage.numel * element.size:
        raise ModelError(
            f"the storage {storage.key[:200]!r} has {data.nbytes} bytes; "
            f"{storage.numel} elements of {element.size} were expected"
        )
    if element.numpy == "|b1":
        return np.asarray(np.frombuffer(data, np.uint8) != 0)
    numbers = np.frombuffer(data, element.numpy)
    if element.widen:
        return np.asarray((numbers.astype(np.uint32) << 16).view(np.float32))
    return numbers.astype(np.float32 if element.numpy == "<f2" else numbers.dtype.newbyteorder("="))


def _view(flat: Array, tensor: _Tensor) -> Array:
    strides = tuple(step * flat.itemsize for step in tensor.stride)
    if 0 in tensor.size:
        return np.zeros(tensor.size, flat.dtype)
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.size, strides, writeable=False)


def _strip_module(state: dict[str, Array]) -> dict[str, Array]:
    """Removes the prefix that DataParallel gives every key."""
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): array for key, array in state.items()}
    return state
