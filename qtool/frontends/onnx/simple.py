"""Converters that need no more than a name: inputs as they are, attributes as the operator's record lists them."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

from qtool.frontends.onnx.body import attr_value
from qtool.frontends.onnx.call import Call, Convert
from qtool.frontends.onnx.known import Known, Unsupported
from qtool.frontends.onnx.tensors import dtype_of
from qtool.ir import Attr
from qtool.ops import Attrs, all_ops, get

IGNORED = frozenset({"saturate", "round_mode", "stash_type", "consumed_inputs", "detect_negative_zero"})
"""Attributes that say nothing of the numbers that qtool computes."""


def same(op: str, outputs: int = 1, **changed: Attr) -> Convert:
    """The operator of that name; ``changed`` sets attributes whatever the file says."""

    def convert(call: Call) -> tuple[Known, ...]:
        return call.body.emit(op, call.inputs, attrs_for(call, op, changed), outputs)

    return convert


def attrs_for(call: Call, op: str, changed: Mapping[str, Attr] = {}) -> dict[str, Attr]:  # never written
    """The node's attributes that the operator's record has; Unsupported for others that matter."""
    if op not in all_ops():
        raise Unsupported("the operator is not supported")
    kinds = _kinds(get(op).attrs)  # type: ignore[arg-type]  # mypy asks the class for its instances' hash
    attrs: dict[str, Attr] = {}
    for name, value in call.attrs.items():
        if name in kinds and name not in changed:
            attrs[name] = _as(kinds[name], value)
        elif name not in changed and name not in IGNORED and value != call.defaults.get(name):
            raise Unsupported(f"attribute {name} = {str(value)[:40]!r}")
    return {**attrs, **changed}


@functools.cache
def _kinds(attrs: type[Attrs]) -> dict[str, Any]:
    hints = typing.get_type_hints(attrs)
    return {field.name: hints[field.name] for field in dataclasses.fields(attrs)}


def _as(kind: Any, value: Any) -> Attr:
    """An ONNX attribute as the record wants it: flags as bool, numbers of element types as their names."""
    if kind is bool:
        return bool(value)
    if kind is str and isinstance(value, int):
        return dtype_of(value, "its output").value
    return attr_value(value)


def passes_through(call: Call) -> Known:
    """The node gives back its first input."""
    return call.x()
