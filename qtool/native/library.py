"""Finds and loads ``libqtool.so``."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qtool.errors import EngineError
from qtool.native import abi

NAME = "libqtool.so"
VARIABLE = "QTOOL_LIBRARY"
"""Environment variable with the path of a library to load instead of the one beside this file."""


@dataclass(frozen=True)
class KernelRow:
    """One kernel of the library: the row of its family's ``kernels.inc``."""

    family: str
    isa: str
    name: str
    tile: str


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    found = _find()
    if found is None:
        return f"{NAME} was not built with this installation (is there a C++17 compiler?)"
    try:
        library = ctypes.CDLL(str(found))
        version = int(library.qt_abi())
    except (OSError, AttributeError) as error:
        return f"{found} cannot be loaded: {error}"
    if version != abi.ABI:
        return f"{found} is of another version (got ABI {version}, expected {abi.ABI}); install qtool again"
    return _declare(library)


def _find() -> Path | None:
    import qtool.native  # here, because the package imports this module: in an editable install it has two folders

    if named := os.environ.get(VARIABLE):
        return Path(named)
    return next((path for folder in qtool.native.__path__ if (path := Path(folder) / NAME).is_file()), None)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, long, int32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    text = ctypes.c_char_p
    signatures = {
        "qt_plan_create": (int32, [ctypes.POINTER(abi.CPlanDesc), ctypes.POINTER(pointer), text, long]),
        "qt_plan_run": (int32, [pointer, ctypes.POINTER(pointer), text, long]),
        "qt_plan_profile": (
            int32,
            [pointer, ctypes.POINTER(pointer), ctypes.POINTER(ctypes.c_double), text, long],
        ),
        "qt_plan_run_part": (int32, [pointer, ctypes.POINTER(pointer), int32, int32, text, long]),
        "qt_plan_address": (pointer, [pointer, int32]),
        "qt_plan_kernel": (text, [pointer, int32]),
        "qt_plan_bytes": (long, [pointer]),
        "qt_plan_free": (None, [pointer]),
        "qt_op_supported": (int32, [int32]),
        "qt_isa_supported": (int32, [int32]),
        "qt_isa_note": (text, [int32]),
        "qt_struct_bytes": (long, [text]),
        "qt_kernels": (long, [text, long]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def library() -> ctypes.CDLL:
    """The loaded library; EngineError with the reason where there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise EngineError(loaded)
    return loaded


def available() -> bool:
    """Whether the native library is there."""
    return not isinstance(_load(), str)


def why_not() -> str:
    """Why the native library cannot be used; "" where it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ""


@lru_cache(maxsize=1)
def supported_isas() -> tuple[str, ...]:
    """The instruction sets that this CPU has and the library has kernels for, least first; none without the library."""
    if not available():
        return ()
    built = {row.isa for row in kernels()}
    return tuple(n for i, n in enumerate(abi.ISAS) if n in built and library().qt_isa_supported(i))


def isa_note(isa: str) -> str:
    """Why this machine does not run an instruction set, or that it is emulated; "" where there is nothing to say."""
    if not available():
        return why_not()
    return str(library().qt_isa_note(abi.ISAS.index(isa)).decode())


def supports(kind: abi.Kind) -> bool:
    """Whether the library has a kernel family for an operator."""
    return available() and bool(library().qt_op_supported(int(kind)))


@lru_cache(maxsize=1)
def kernels() -> tuple[KernelRow, ...]:
    """Every kernel of the library, also those that this CPU cannot run."""
    size = library().qt_kernels(None, 0)
    text = ctypes.create_string_buffer(size)
    library().qt_kernels(text, size)
    return tuple(KernelRow(*line.split(" ", 3)) for line in text.value.decode().splitlines())
