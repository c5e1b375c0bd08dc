"""``--set key.path=value``: changes to a recipe from the command line.

    --set backend=qnnpack
    --set calibration.batches=4
    --set 'gates={max_accuracy_drop: 0.02}'             any YAML value, here a mapping
    --set qconfig_dict.=accurate                        the rule "" (everything)
    --set qconfig_dict.layer1.0.conv1=null              all that follows qconfig_dict. is one key, dots included
    --set qconfig_dict.layer1.0.conv1.weight.observer=min_max
                                                        ... but for a last activation, weight, preset, single_rounding,
                                                        bias_correction
    --set 'qconfig_dict."block.weight"=null'            any part of a path may be quoted to be taken as it is

Relative paths start at the current folder, not at the recipe's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from qtool.errors import RecipeError
from qtool.recipe.items import Item
from qtool.recipe.yamlfile import parse

_PART = re.compile(r'"([^"]*)"|([^."=]*)')
_RULE = re.compile(
    r"(?P<key>.*?)(?:\.(?P<inner>(?:activation|weight)(?:\.\w+)?|preset|single_rounding|bias_correction))?"
)
_RULES = "qconfig_dict"


def apply_overrides(recipe: Item, overrides: Sequence[str]) -> Item:
    """The recipe with each override in place, the last one winning; RecipeError for one that cannot be understood."""
    for text in overrides:
        path, value = _split(text)
        recipe = _replaced(recipe, path, parse(value, f"--set {text}", Path(), lines=False))
    return recipe


def _split(text: str) -> tuple[tuple[str, ...], str]:
    """The path and the text of the value."""
    path: tuple[str, ...] = ()
    rest = text
    while True:
        if path == (_RULES,) and not rest.startswith('"'):
            key, equals, value = rest.partition("=")
            found = _RULE.fullmatch(key)
            if not equals or found is None:
                raise _unreadable(text)
            inner = found["inner"].split(".") if found["inner"] else []
            return (*path, found["key"], *inner), value
        part = _PART.match(rest)
        assert part is not None  # it may be empty
        quoted, plain = part[1], part[2]
        mark, rest = rest[part.end() : part.end() + 1], rest[part.end() + 1 :]
        if mark not in (".", "=") or (quoted is None and not plain):
            raise _unreadable(text)
        path = (*path, plain if quoted is None else quoted)
        if mark == "=":
            return path, rest


def _unreadable(text: str) -> RecipeError:
    return RecipeError(f"--set {text}: expected key.path=value, such as backend=qnnpack or gates.min_speedup=2")


def _replaced(item: Item, path: tuple[str, ...], value: Item, above: tuple[str, ...] = ()) -> Item:
    """The mapping with the value at the path; mappings on the way are made where there are none."""
    if not path:
        return value
    if isinstance(item.value, str) and above[:1] == (_RULES,) and len(above) == 2:
        # A part of a rule that names a preset is changed: the rest stays as in the preset.
        item = Item(MappingProxyType({"preset": item}), item.where, item.base)
    if item.value is not None and not isinstance(item.value, Mapping):
        value.fail(f"{'.'.join(above) or 'the recipe'} is not a mapping, and so has no key {path[0]!r}")
    child = item.entries().get(path[0], Item(None, value.where, value.base))
    return item.with_entry(path[0], _replaced(child, path[1:], value, (*above, path[0])))
