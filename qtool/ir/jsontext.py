"""Reads and writes JSON strictly and within bounds."""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

import numpy as np

from qtool.errors import ModelError
from qtool.ir.graph import Json
from qtool.ir.limits import INT64, MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_JSON_TOKENS, shown

_NUMBER_LENGTH = 32
_STRUCTURE = b"[{]},:"
_NOT_STRUCTURE = bytes(set(range(256)) - set(_STRUCTURE))
_STEPS = bytes.maketrans(_STRUCTURE, b"\x01\x01\xff\xff\x00\x00")
"""How each mark changes the depth, as int8."""


def write_json(value: Json) -> bytes:
    """Compact UTF-8. ModelError for NaN, infinities and texts that UTF-8 cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"cannot be written as JSON: {error}") from error


def read_json(data: bytes, what: str) -> Json:
    """Parses UTF-8 JSON. ModelError for anything else, for NaN, doubled keys, and beyond the bounds of ``limits``.

    Brackets and commas are counted before anything is parsed: Python makes up to 72 bytes of each.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ModelError(f"{what} has {len(data)} bytes; at most {MAX_JSON_BYTES} are read")
    _check_structure(data, what)
    try:
        return _DECODER.decode(data.decode("utf-8"))  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        raise ModelError(f"{what} is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise ModelError(f"{what} is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ModelError(f"{what} is not JSON: {error.msg} at character {error.pos}") from error


def _check_structure(data: bytes, what: str) -> None:
    marks = _outside_strings(data).translate(None, _NOT_STRUCTURE)
    if len(marks) > MAX_JSON_TOKENS:
        raise ModelError(f"{what} has {len(marks)} brackets, commas and colons; at most {MAX_JSON_TOKENS} are read")
    steps = np.frombuffer(marks.translate(_STEPS), np.int8)
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > MAX_JSON_DEPTH:
        raise ModelError(f"{what} is nested {depth} deep; at most {MAX_JSON_DEPTH} levels are read")


def _outside_strings(data: bytes) -> bytes:
    """The bytes that are in no string. In JSON a backslash only occurs in a string, so escapes can be dropped first."""
    if b"\\" in data:
        data = re.sub(rb"\\.", b"", data, flags=re.DOTALL)
    octets = np.frombuffer(data, np.uint8)
    quoted = np.bitwise_xor.accumulate((octets == ord('"')).view(np.uint8)).view(np.bool_)
    return octets[~quoted].tobytes()


def _parse_int(text: str) -> int:
    number = int(text) if len(text) <= _NUMBER_LENGTH else None
    if number is None or number not in INT64:
        raise ModelError(f"the number {shown(text)} does not fit 64 bits")
    return number


def _parse_float(text: str) -> float:
    number = float(text) if len(text) <= _NUMBER_LENGTH else math.inf
    if not math.isfinite(number):
        raise ModelError(f"the number {shown(text)} is too large or too long")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ModelError(f"{text} is not a JSON number")


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ModelError(f"the key {shown(twice)} is there twice")
    return made


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant
)
