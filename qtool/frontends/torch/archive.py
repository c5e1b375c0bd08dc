"""Opens a .pt2 file, once it has been looked over: see the package's note on trust."""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qtool.errors import ModelError

MAX_JSON = 1 << 28
MAX_DEPTH = 60
EXPRESSION = re.compile(r"[A-Za-z0-9_+\-*/(), <>=&|~]*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SYMBOL = re.compile(r"[a-z]{1,3}[0-9]+|int_oo|oo|True|False")
QUOTED = re.compile(r"\bSymbol\('[A-Za-z_][A-Za-z0-9_]*'")
ASSUMPTIONS = frozenset({"positive", "negative", "nonnegative", "nonzero", "integer", "real", "finite"})
FUNCTIONS = frozenset(
    {
        "FloorDiv",
        "ModularIndexing",
        "Symbol",
        "Integer",
        "Mul",
        "Add",
        "Pow",
        "Equality",
        "Unequality",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
        "Where",
        "PythonMod",
        "Mod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "LShift",
        "RShift",
        "PowByNatural",
        "FloatPow",
        "FloatTrueDiv",
        "IntTrueDiv",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
        "Max",
        "Min",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "Abs",
        "floor",
        "ceiling",
        "Piecewise",
    }
)
TARGET = re.compile(
    r"torch\.ops\.(aten|prims)(\.[A-Za-z0-9_]+)+|torch\.sym_[a-z]+|(_operator|math)\.[a-z_]+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
)
STRUCTURES = ("in_spec", "out_spec")
OBJECTS = ("custom_obj", "opaque_obj")
COMPILED = (".so", ".cubin", ".dll", ".dylib", ".o", ".cpp")


def read_program(path: Path) -> Any:
    """The exported program of a file; ModelError for one that is broken or holds what is refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            _look_over(archive)
    except (OSError, zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError, EOFError) as error:
        raise ModelError(f"cannot be read as a .pt2 archive: {type(error).__name__}: {error}") from error
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
    except Exception as error:  # torch raises anything for files that do not fit
        raise ModelError(f"torch.export cannot load it: {type(error).__name__}: {str(error)[:400]}") from error
    program._guards_code = []  # Python text: qtool checks what it is fed by its own rules
    return program


def _look_over(archive: zipfile.ZipFile) -> None:
    models = 0
    for info in archive.infolist():
        name = info.filename
        if "/aotinductor/" in name or name.endswith(COMPILED):
            raise ModelError(
                f"it holds compiled code ({name}), which is not run; save the program with torch.export.save"
            )
        if name.rsplit("/", 1)[-1].startswith(OBJECTS):
            raise ModelError(f"it holds an object that is no tensor ({name}), which only unpickling could read")
        if name.endswith(".json") and not name.endswith(("serialized_state_dict.json", "serialized_constants.json")):
            if info.file_size > MAX_JSON:
                raise ModelError(f"{name} has {info.file_size} bytes; expected at most {MAX_JSON}")
            content = json.loads(archive.read(info))
            models += isinstance(content, dict) and "graph_module" in content
            _check_texts(content, 0)
            _check_pickles(archive, name, content)
        elif name.endswith((".pt", ".json")):
            _check_pickle(archive, name)
    if not models:
        raise ModelError("it is no .pt2 archive: it holds no exported program")


def _check_texts(item: Any, depth: int) -> None:
    """Refuses texts that torch would evaluate or import by, unless they are arithmetic and operators."""
    if depth > MAX_DEPTH:
        raise ModelError(f"its description is nested more than {MAX_DEPTH} deep")
    if isinstance(item, list):
        for part in item:
            _check_texts(part, depth + 1)
    elif isinstance(item, dict):
        for key, value in item.items():
            if key == "expr_str":
                check_expression(value)
            elif key == "target" and isinstance(value, str) and "inputs" in item and not TARGET.fullmatch(value):
                raise ModelError(f"it calls {value[:100]!r}; expected PyTorch's own operators")
            elif key in STRUCTURES and isinstance(value, str):
                _check_structure(value)
            else:
                _check_texts(value, depth + 1)


def _check_structure(text: str) -> None:
    """The nesting of inputs or outputs, JSON within JSON: torch imports what it names as a factory or an enumeration.
    Escapes could hide these words."""
    if any(word in text for word in ("default_factory", "__enum__", "\\u")):
        raise ModelError("its inputs or outputs are more than tuples, lists and dicts with plain keys")


def check_expression(text: Any) -> None:
    """Refuses what is not arithmetic on sizes: torch hands it to sympy, which evaluates it as Python."""
    plain = QUOTED.sub("Symbol(", text) if isinstance(text, str) else "?"
    names = [name for name in NAME.findall(plain) if name not in FUNCTIONS and name not in ASSUMPTIONS]
    if not EXPRESSION.fullmatch(plain) or not all(map(SYMBOL.fullmatch, names)):
        raise ModelError(f"a size is written as {str(text)[:100]!r}; expected arithmetic on sizes")


def _check_pickles(archive: zipfile.ZipFile, config: str, content: Any) -> None:
    """Tensors that are pickled, as the lists of weights and constants name them."""
    entries = content.get("config") if isinstance(content, dict) else None
    for entry in entries.values() if isinstance(entries, dict) else _nothing():
        name = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name.startswith(OBJECTS):
            raise ModelError(f"{config} names something that is no tensor")
        if entry.get("use_pickle"):
            _check_pickle(archive, f"{config.rsplit('/', 1)[0]}/{name}")


def _nothing() -> Iterator[Any]:
    return iter(())


def _check_pickle(archive: zipfile.ZipFile, name: str) -> None:
    """Refuses a pickle that is more than tensors and plain containers."""
    data = archive.read(name)
    if not data:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise ModelError(f"{name} holds more than tensors, which is refused: {str(error)[:200]}") from error
