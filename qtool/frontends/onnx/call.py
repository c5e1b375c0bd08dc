"""One ONNX node as its converter sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qtool.errors import ModelError
from qtool.frontends.onnx import symbolic
from qtool.frontends.onnx.body import Body
from qtool.frontends.onnx.known import Known, Unsupported, constant_of
from qtool.ir import Array, Attr, Dim, DType

if TYPE_CHECKING:
    from qtool.frontends.onnx.importer import Importer


@dataclass(frozen=True)
class Call:
    """A node with its inputs resolved; attributes it leaves out have the operator's default.

    ``attrs`` holds ints, floats, texts, tuples of them, arrays and GraphProtos.
    """

    op: str
    opset: int
    name: str
    inputs: tuple[Known | None, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    defaults: Mapping[str, Any]
    body: Body
    importer: Importer
    scope: MutableMapping[str, Known | None]
    """All values that the node's own bodies may read."""

    def get(self, position: int) -> Known | None:
        """An input, None where it is left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def x(self, position: int = 0) -> Known:
        """An input that must be there."""
        found = self.get(position)
        if found is None:
            raise ModelError(f"input {position} is missing")
        return found

    def array(self, position: int, what: str) -> Array | None:
        """An input that must be a constant; None where it is left out."""
        found = self.get(position)
        if found is None:
            return None
        if found.array is None:
            raise Unsupported(f"its {what} is no constant")
        return found.array

    def ints(self, position: int, what: str) -> tuple[int, ...] | None:
        """The numbers of a constant input."""
        array = self.array(position, what)
        return None if array is None else tuple(int(n) for n in array.reshape(-1))

    def sizes(self, position: int) -> tuple[Dim, ...] | None:
        """A vector of sizes as far as it is known while importing: ints and symbols; None where it is not."""
        known = self.x(position)
        if known.symbols is not None:
            return symbolic.dims_of(known.symbols)
        return None if known.array is None else tuple(int(n) for n in known.array.reshape(-1))

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def emit(self, op: str, inputs: Sequence[Known | None], /, **attrs: Attr) -> Known:
        """Adds an operator with one output."""
        return self.body.emit(op, inputs, attrs)[0]

    def emit_all(self, op: str, inputs: Sequence[Known | None], count: int, /, **attrs: Attr) -> tuple[Known, ...]:
        """Adds an operator with ``count`` outputs."""
        return self.body.emit(op, inputs, attrs, count)

    def scalar(self, value: float, dtype: DType = DType.FLOAT32) -> Known:
        return constant_of(np.asarray(value, dtype.numpy))

    def wants(self, output: int) -> bool:
        """Whether the node's output of this number is used."""
        return output < len(self.outputs) and bool(self.outputs[output])


Convert = Callable[[Call], Known | Sequence[Known]]


def make_attributes(node: Any, folder: Path) -> dict[str, Any]:
    """The attributes of a NodeProto as plain values."""
    import onnx

    from qtool.frontends.onnx.tensors import read_tensor

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise ModelError(f"attribute {attribute.name!r} refers to a function's, outside of one")
        if attribute.type == onnx.AttributeProto.TENSOR:
            found[attribute.name] = read_tensor(attribute.t, folder)
            continue
        if attribute.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
            raise Unsupported(f"attribute {attribute.name!r} is a sparse tensor")
        found[attribute.name] = _plain(onnx.helper.get_attribute_value(attribute))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)) or type(value).__name__.startswith("Repeated"):
        return tuple(_plain(item) for item in value)
    return value


def defaults_of(op: str, opset: int, domain: str) -> Mapping[str, Any]:
    """What ONNX's schema says of attributes that a node leaves out."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    return {
        name: _plain(onnx.helper.get_attribute_value(attribute.default_value))
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
