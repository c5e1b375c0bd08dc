"""What a key of a recipe may hold: each kind checks a value, says what it expects, and gives its JSON schema."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qtool.recipe.items import Item, shown
from qtool.recipe.suggest import did_you_mean


class Kind(Protocol):
    def read(self, item: Item, name: str) -> Any:
        """The value as qtool uses it; RecipeError with its place for one of another kind."""

    def schema(self) -> dict[str, Any]:
        """JSON schema, draft 2020-12."""


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` to ``high``, both included."""

    low: int
    high: int

    def accepts(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def read(self, item: Item, name: str) -> Any:
        return item.value if self.accepts(item.value) else item.refuse(name, str(self))

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Real:
    """A finite number from ``low`` to ``high``; ``above`` leaves ``low`` itself out."""

    low: float
    high: float
    above: bool = False

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def read(self, item: Item, name: str) -> Any:
        return item.value if self.accepts(item.value) else item.refuse(name, str(self))

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "exclusiveMinimum" if self.above else "minimum": self.low, "maximum": self.high}

    def __str__(self) -> str:
        low = f"above {self.low:g}, at most {self.high:g}" if self.above else f"from {self.low:g} to {self.high:g}"
        return f"a number {low}"


@dataclass(frozen=True)
class Flag:
    """true or false."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def read(self, item: Item, name: str) -> Any:
        return item.value if isinstance(item.value, bool) else item.refuse(name, "true or false")

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text:
    """Text that is not empty; ``what`` says what it names."""

    what: str = "text"

    def read(self, item: Item, name: str) -> Any:
        return item.value if isinstance(item.value, str) and item.value else item.refuse(name, self.what)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class FilePath:
    """A path, relative to the recipe's folder."""

    def read(self, item: Item, name: str) -> Any:
        if not isinstance(item.value, str) or not item.value or "\0" in item.value:
            item.refuse(name, "a path")
        return item.base / Path(item.value).expanduser()

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, item: Item, name: str) -> Any:
        if not isinstance(item.value, str):
            item.refuse(name, f"one of: {', '.join(self.words)}")
        if item.value not in self.words:
            item.fail(f"{name}: unknown value {shown(item.value)}{did_you_mean(item.value, self.words)}")
        return item.value

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.words)}


def one_of(enumeration: type[enum.Enum]) -> Choice:
    """The words of an enumeration."""
    return Choice(tuple(member.value for member in enumeration))


@dataclass(frozen=True)
class ListOf:
    """A list of as many values as one of ``lengths`` says (at least one, where that is empty), read as a tuple."""

    kind: Kind
    lengths: tuple[int, ...] = ()

    def read(self, item: Item, name: str) -> Any:
        items = item.value
        if not isinstance(items, tuple) or not items or (self.lengths and len(items) not in self.lengths):
            count = " or ".join(map(str, self.lengths)) or "one or more"
            item.refuse(name, f"a list of {count} values")
        return tuple(self.kind.read(child, f"{name}[{k}]") for k, child in enumerate(items))

    def schema(self) -> dict[str, Any]:
        one: dict[str, Any] = {"type": "array", "items": self.kind.schema()}
        if not self.lengths:
            return {**one, "minItems": 1}
        return {"anyOf": [{**one, "minItems": length, "maxItems": length} for length in self.lengths]}


@dataclass(frozen=True)
class Interval:
    """``[low, high]`` with low < high, read as a tuple; ``open_ended`` lets high be null."""

    kind: Whole | Real
    open_ended: bool = False

    def read(self, item: Item, name: str) -> Any:
        items = item.value
        if not isinstance(items, tuple) or len(items) != 2:
            item.refuse(name, str(self))
        low = self.kind.read(items[0], f"{name}[0]")
        if self.open_ended and items[1].value is None:
            return low, None
        high = self.kind.read(items[1], f"{name}[1]")
        if low >= high:
            item.fail(f"{name}: got [{low}, {high}], expected the first to be less than the second")
        return low, high

    def schema(self) -> dict[str, Any]:
        high = {"anyOf": [self.kind.schema(), {"type": "null"}]} if self.open_ended else self.kind.schema()
        return {"type": "array", "prefixItems": [self.kind.schema(), high], "minItems": 2, "maxItems": 2}

    def __str__(self) -> str:
        return "a list of two numbers" + (", the second of which may be null" if self.open_ended else "")


@dataclass(frozen=True)
class Number:
    """A finite number, or true or false."""

    def read(self, item: Item, name: str) -> Any:
        if not isinstance(item.value, (int, float)) or not math.isfinite(item.value):
            item.refuse(name, "a number, or true or false")
        return item.value

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "number"}, {"type": "boolean"}]}


@dataclass(frozen=True)
class MapOf:
    """A mapping whose keys are free, with at least one."""

    kind: Kind

    def read(self, item: Item, name: str) -> Any:
        if not isinstance(item.value, Mapping) or not item.value:
            item.refuse(name, "a mapping from names")
        return {key: self.kind.read(child, _inside(name, key)) for key, child in item.entries().items()}

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "minProperties": 1, "additionalProperties": self.kind.schema()}


@dataclass(frozen=True)
class Either:
    """A single value, or what ``other`` (a list or a mapping) holds."""

    words: Kind
    other: Kind

    def read(self, item: Item, name: str) -> Any:
        return (self.words if not isinstance(item.value, (tuple, Mapping)) else self.other).read(item, name)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.words.schema(), self.other.schema()]}


@dataclass(frozen=True)
class Key:
    """One key of a mapping. Where it is not ``required`` it may be left out, or null, and then keeps its default."""

    kind: Kind
    doc: str
    required: bool = False


@dataclass(frozen=True)
class Table:
    """A mapping with known keys; gives a dict of those that are there."""

    keys: Mapping[str, Key]

    def read(self, item: Item, name: str) -> Any:
        check_keys(item, name, self.keys)
        for key, spec in self.keys.items():
            if spec.required and key not in item.entries():
                item.fail(f"{_inside(name, key)} is missing: {spec.doc}")
        return {
            key: self.keys[key].kind.read(child, _inside(name, key))
            for key, child in item.entries().items()
            if child.value is not None or self.keys[key].required
        }

    def schema(self) -> dict[str, Any]:
        required = [key for key, spec in self.keys.items() if spec.required]
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {key: _property(spec) for key, spec in self.keys.items()},
            **({"required": required} if required else {}),
        }


def check_keys(item: Item, name: str, known: Mapping[str, Any]) -> None:
    """RecipeError where the item is no mapping, or has a key that is not known, with the nearest that is."""
    if not isinstance(item.value, Mapping):
        item.refuse(name or "the recipe", f"a mapping with the keys {', '.join(known)}")
    for key, child in item.value.items():
        if key not in known:
            place = f" in {name}" if name else ""
            child.fail(f"unknown key {shown(key)}{place}{did_you_mean(key, known)}")


def _inside(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _property(spec: Key) -> dict[str, Any]:
    schema = spec.kind.schema()
    if spec.required:
        return {"description": spec.doc, **schema}
    return {"description": spec.doc, "anyOf": [schema, {"type": "null"}]}
