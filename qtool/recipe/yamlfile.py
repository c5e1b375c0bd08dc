"""YAML text -> Item; the only place that imports yaml.

Nothing is constructed but text, numbers, booleans, null, lists and mappings; keys are always text as written. Size,
depth and the number of values are bounded, aliases counted each time they are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import MappingProxyType

import yaml

from qtool.errors import RecipeError
from qtool.recipe.items import Item, Scalar, shown

MAX_BYTES = 1 << 18
MAX_VALUES = 20_000

_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
_REAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")}
_TRUE = ("true", "yes", "on")


def read_file(path: Path) -> Item:
    """A recipe file; RecipeError where it cannot be read or is not YAML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: the recipe is not UTF-8 text (byte {error.start})") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: the recipe is larger than {MAX_BYTES} bytes")
    return parse(text, str(path), path.parent)


def parse(text: str, name: str, base: Path, lines: bool = True) -> Item:
    """YAML text; places are ``<name>:<line>``, or ``name`` without ``lines``. Relative paths start at ``base``."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is None:
            return Item(None, f"{name}:1" if lines else name, base)
        return _Converter(name, base, lines).item(node, node.start_mark.line)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and lines else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise RecipeError(f"{name}{line}: not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise RecipeError(f"{name}: the values are nested too deeply") from None
    except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF", or half of a surrogate pair
        raise RecipeError(f"{name}: not valid YAML: {error}") from None


class _Converter:
    def __init__(self, name: str, base: Path, lines: bool) -> None:
        self._name = name
        self._base = base
        self._lines = lines
        self._values: Iterator[int] = count(1)

    def _where(self, line: int) -> str:
        return f"{self._name}:{line + 1}" if self._lines else self._name

    def item(self, node: yaml.Node, line: int) -> Item:
        where = self._where(line)
        if next(self._values) > MAX_VALUES:
            raise RecipeError(f"{where}: the recipe holds more than {MAX_VALUES} values")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return Item(MappingProxyType(self._entries(node)), where, self._base)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            items = tuple(self.item(child, child.start_mark.line) for child in node.value)
            return Item(items, where, self._base)
        if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN_TAGS:
            return Item(_scalar(node), where, self._base)
        raise RecipeError(f"{where}: the YAML tag '{node.tag}' is not allowed")

    def _entries(self, node: yaml.MappingNode) -> dict[str, Item]:
        entries: dict[str, Item] = {}
        for key, value in node.value:
            line = key.start_mark.line
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{self._where(line)}: a key must be text")
            name = str(key.value)
            name.encode("utf-8")
            if name in entries:
                first = entries[name].where
                raise RecipeError(f"{self._where(line)}: the key {shown(name)} is there twice, first at {first}")
            entries[name] = self.item(value, line)
        return entries


def _scalar(node: yaml.ScalarNode) -> Scalar:
    """Numbers are read as JSON has them, so that 1e-3 is one and 010 is ten; YAML 1.1's other spellings stay text."""
    text = str(node.value)
    text.encode("utf-8")  # ValueError where it cannot be written again
    if node.style is not None:
        return text
    if node.tag == f"{_TAG}null":
        return None
    if node.tag == f"{_TAG}bool":
        return text.lower() in _TRUE
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _REAL.fullmatch(text) else text
