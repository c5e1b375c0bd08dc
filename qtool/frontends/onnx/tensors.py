"""Tensors of an ONNX file as arrays: embedded ones without a copy where possible, external ones memory-mapped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qtool.errors import ModelError
from qtool.frontends.onnx.known import Unsupported
from qtool.ir import Array, DType
from qtool.ir.limits import MAX_ELEMENTS, MAX_RANK, shown

_EXTERNAL = 1  # TensorProto.EXTERNAL
DTYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""Numbers of TensorProto.DataType -> NumPy's names, for what NumPy has."""


def dtype_of(number: int, what: str) -> DType:
    """The graph's element type for TensorProto's; Unsupported for one that a graph cannot hold."""
    try:
        return DType(DTYPES[number])
    except (KeyError, ValueError):
        raise Unsupported(f"{what} has element type {type_name(number)}") from None


def type_name(number: int) -> str:
    """ONNX's own name of an element type."""
    import onnx

    try:
        return str(onnx.TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"number {number}"


def read_tensor(tensor: Any, folder: Path) -> Array:
    """A TensorProto as a read-only array; ``folder`` is where external data lie.

    ModelError where its bytes do not fit its shape, Unsupported for an element type a graph cannot hold.
    """
    what = f"tensor {shown(tensor.name)}"
    dtype = dtype_of(tensor.data_type, what).numpy.newbyteorder("<")
    shape = tuple(int(n) for n in tensor.dims)
    if len(shape) > MAX_RANK or min(shape, default=0) < 0 or math.prod(shape) > MAX_ELEMENTS:
        raise ModelError(f"{what} has the shape {shown(shape)}, which no tensor has")
    if tensor.data_location == _EXTERNAL:
        return _external(tensor, folder, dtype, shape, what)
    if tensor.HasField("raw_data"):
        array = np.frombuffer(tensor.raw_data, dtype)
    else:
        import onnx.numpy_helper

        array = np.asarray(onnx.numpy_helper.to_array(tensor), dtype).reshape(-1)
    if array.size != math.prod(shape):
        raise ModelError(f"{what} has {array.size} elements; expected {math.prod(shape)} for its shape {shape}")
    return _frozen(array.reshape(shape))


def _external(tensor: Any, folder: Path, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> Array:
    """The file a tensor names, mapped into memory; it must lie in the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    root = folder.resolve()
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(root) or not path.is_file():
        raise ModelError(f"{what} lies in the file {shown(location)}, which is not in the model's folder {folder}")
    size = math.prod(shape) * dtype.itemsize
    offset, length = (_number(entries.get(key, default), what) for key, default in (("offset", "0"), ("length", "")))
    if offset < 0 or (length >= 0 and length != size) or offset + size > path.stat().st_size:
        raise ModelError(f"{what} needs {size} bytes at {offset} of {shown(location)}, which does not hold them")
    if not size:
        return _frozen(np.zeros(shape, dtype))
    mapped = np.memmap(path, np.uint8, "r", offset, (size,))
    return _frozen(np.require(np.asarray(mapped).view(dtype), requirements="A").reshape(shape))


def _number(text: str, what: str) -> int:
    """A number of an external_data entry; -1 where there is none."""
    if text and not (text.isdecimal() and len(text) <= 18):
        raise ModelError(f"{what} has a place {shown(text)} in its file; expected a number")
    return int(text) if text else -1


def _frozen(array: Array) -> Array:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    native.setflags(write=False)
    return native
