"""What the argument structures of operators are made of: fields, and pointers to arrays that stay alive."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from qtool.errors import EngineError


def ints(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int32) for name in names.split()]


def longs(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int64) for name in names.split()]


def floats(names: str) -> list[tuple[str, Any]]:
    return [(name, c_float) for name in names.split()]


def pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names.split()]


class Args(ctypes.Structure):
    """Arguments of one operator. Build it with ``make``, which keeps the arrays that it points to alive."""

    c_name: ClassVar[str]
    arrays: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The element types that each pointer may have."""


A = TypeVar("A", bound=Args)


def make(cls: type[A], /, **fields: Any) -> A:
    """An ``Args`` from plain numbers, arrays (for pointers), other ``Args`` and None.

    EngineError for an array of another element type or one that is not C-contiguous.
    """
    args = cls()
    kept = []
    for name, value in fields.items():
        if isinstance(value, np.ndarray | Args):
            kept.append(value)
        setattr(args, name, _plain(cls, name, value))
    args.kept = kept  # ctypes structures take attributes; the pointers stay good for as long as the structure lives
    return args


def copied(args: A, /, **numbers: int | float) -> A:
    """The same arguments with some numbers changed."""
    made = type(args).from_buffer_copy(args)
    for name, value in numbers.items():
        setattr(made, name, value)
    made.kept = args.kept
    return made


def _plain(cls: type[Args], name: str, value: Any) -> Any:
    if isinstance(value, Args):
        return ctypes.addressof(value)
    return _address(cls, name, value) if isinstance(value, np.ndarray) else value


def _address(cls: type[Args], name: str, array: NDArray[Any]) -> int:
    allowed = cls.arrays[name]
    if array.dtype.name not in allowed or not array.flags.c_contiguous:
        order = "contiguous" if array.flags.c_contiguous else "strided"
        raise EngineError(f"{cls.c_name}.{name}: got {order} {array.dtype.name}, expected {' or '.join(allowed)}")
    return array.ctypes.data
