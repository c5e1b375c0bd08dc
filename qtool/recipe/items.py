"""A recipe's values with the places they stand at, so that every message can name file and line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from qtool.errors import RecipeError

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Item:
    """A scalar, a list or a mapping. ``base`` is the folder that relative paths in it start from."""

    value: Scalar | tuple[Item, ...] | Mapping[str, Item]
    where: str
    base: Path = Path()

    def plain(self) -> Any:
        """The same without places: what ``json`` can write."""
        if isinstance(self.value, Mapping):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, tuple):
            return [item.plain() for item in self.value]
        return self.value

    def entries(self) -> Mapping[str, Item]:
        """The items of a mapping; empty for everything else."""
        return self.value if isinstance(self.value, Mapping) else MappingProxyType({})

    def with_entry(self, key: str, item: Item) -> Item:
        """A mapping with one entry more, or another in its place."""
        return replace(self, value=MappingProxyType({**self.entries(), key: item}))

    def fail(self, message: str) -> NoReturn:
        raise RecipeError(f"{self.where}: {message}")

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Says what was got and what was expected."""
        self.fail(f"{name}: got {describe(self)}, expected {expected}")


def describe(item: Item) -> str:
    """A value as a message shows it."""
    if isinstance(item.value, Mapping):
        return "a mapping"
    if isinstance(item.value, tuple):
        return "a list"
    if item.value is None:
        return "null"
    return str(item.value).lower() if isinstance(item.value, bool) else shown(item.value)


def shown(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
