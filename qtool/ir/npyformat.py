"""The header of the ``.npy`` format, made and read without evaluating anything (numpy.lib.format, versions 1 to 3)."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

import numpy as np

from qtool.errors import ModelError
from qtool.ir.limits import MAX_ELEMENTS, MAX_RANK, shown

MAGIC = b"\x93NUMPY"
ALIGNMENT = 64
MAX_HEADER = 4096
_PREFIX = {1: ("<H", 10), 2: ("<I", 12), 3: ("<I", 12)}
"""Major version: how the length of the text is stored, and where the text begins."""
_TEXT = re.compile(
    r"\{\s*'descr':\s*(?P<descr>'[^'\\]{1,16}'|\[.*\]),\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[0-9, ]*)\),?\s*\}\s*",
    re.DOTALL | re.ASCII,
)


@dataclass(frozen=True)
class NpyHeader:
    """What the header says: element type, order, shape, and how many bytes come before the elements."""

    dtype: np.dtype[np.generic]
    fortran: bool
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def make_header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """Version 1.0, C order, padded with blanks so that the elements begin at a multiple of 64."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode("ascii")
    padding = -(10 + len(text) + 1) % ALIGNMENT
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(text) + padding + 1) + text + b" " * padding + b"\n"


def parse_header(head: bytes, where: str) -> NpyHeader:
    """Reads a header from the first bytes of an array; ModelError says what ``where`` has in its place.

    Only plain little-endian element types pass: no objects (they are pickles), records, text or dates.
    """
    if not head.startswith(MAGIC) or len(head) < 12:
        raise ModelError(f"{where} is not a NumPy array: it begins with {shown(bytes(head[:6]))}, expected {MAGIC!r}")
    if head[6] not in _PREFIX:
        raise ModelError(f"{where} has version {head[6]}.{head[7]} of the .npy format, expected 1.0 to 3.0")
    layout, begin = _PREFIX[head[6]]
    (length,) = struct.unpack_from(layout, head, 8)
    if begin + length > min(len(head), MAX_HEADER):
        raise ModelError(f"{where} has a header of {length} bytes, which is cut off or longer than {MAX_HEADER}")
    match = _TEXT.fullmatch(head[begin : begin + length].decode("latin-1"))
    if match is None:
        raise ModelError(f"{where} has a header that is not as NumPy writes it: {shown(head[begin : begin + 60])}")
    dtype = _dtype(match["descr"], where)
    return NpyHeader(dtype, match["fortran"] == "True", _shape(match["shape"], where), begin + length)


def _dtype(descr: str, where: str) -> np.dtype[np.generic]:
    text = descr.strip("'")
    if "O" in text:
        raise ModelError(f"{where} holds Python objects (pickled); qtool never unpickles")
    if text.startswith(">"):
        raise ModelError(f"{where} is big-endian ({text}); expected little-endian ('<{text[1:]}')")
    if not re.fullmatch(r"[<|=]?(b1|[iu][1248]|f[248])", text):
        raise ModelError(f"{where} has element type {shown(text)}; expected plain numbers or bool")
    return np.dtype(text)


def _shape(text: str, where: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if parts[-1] == "":
        parts.pop()
    if len(parts) > MAX_RANK or not all(re.fullmatch("[0-9]{1,15}", part) for part in parts):
        raise ModelError(f"{where} has shape ({shown(text)}); expected at most {MAX_RANK} sizes")
    shape = tuple(int(part) for part in parts)
    if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise ModelError(f"{where} has shape {shape}: more than {MAX_ELEMENTS} elements")
    return shape
