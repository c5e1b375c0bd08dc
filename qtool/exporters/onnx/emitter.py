"""Collects the nodes and initializers of one ONNX graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qtool.ir import Array, QParams

SHARED_BYTES = 64
"""Constants up to this size that exporters make (axes, zero points) are stored once, whoever uses them."""


@dataclass(eq=False)
class Item:
    """A node to be: a NodeProto is only made when the names are final. ``attrs`` holds plain values and arrays."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attrs: Mapping[str, Any]


class Names:
    """Hands out names that nobody has, over a whole model: bodies of control flow may not shadow names around them."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._taken = set(taken)

    def take(self, wanted: str) -> str:
        """``wanted``, or with a number where that is taken."""
        free = wanted
        for number in itertools.count(1):
            if free not in self._taken:
                break
            free = f"{wanted}_{number}"
        self._taken.add(free)
        return free


@dataclass
class Emitter:
    """One graph under construction; ``opset`` decides which form of an operator is written."""

    opset: int
    values: Names
    nodes: Names
    items: list[Item] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    _shared: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _parameters: dict[str, tuple[str, str]] = field(default_factory=dict)
    _path: str = "/"
    _base: str = ""
    _fresh: dict[str, tuple[Item, int]] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """What values in between are called after."""
        return self._base

    @contextmanager
    def origin(self, scope: str, base: str) -> Iterator[None]:
        """Nodes made inside are called after the module ``scope``, values in between after the value ``base``."""
        before = self._path, self._base
        self._path, self._base, self._fresh = node_path(scope), base, {}
        try:
            yield
        finally:
            self._path, self._base = before

    def emit(self, op: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> tuple[str, ...]:
        """Adds a node; its outputs get names of their own, which ``bind`` may still change."""
        names = [self.values.take(f"{self._base}.{op}") for _ in range(outputs)]
        kept = list(inputs)
        while kept and not kept[-1]:
            kept.pop()
        item = Item(op, self.nodes.take(f"{self._path}{op}"), kept, names, attrs)
        self.items.append(item)
        self._fresh.update({name: (item, position) for position, name in enumerate(names)})
        return tuple(names)

    def bind(self, result: str, name: str) -> str:
        """Calls a result of the current origin, which nothing may have read yet, ``name``; what is no such result is
        copied by Identity."""
        if result not in self._fresh:
            (result,) = self.emit("Identity", [result])
        item, position = self._fresh.pop(result)
        item.outputs[position] = name
        return name

    def initializer(self, name: str, array: Array) -> str:
        """A constant under exactly this name."""
        self.initializers[name] = array
        return name

    def constant(self, array: Array, hint: str) -> str:
        """A constant that the exporter makes; small ones of equal type and content are shared."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes() if array.nbytes <= SHARED_BYTES else b"")
        if array.nbytes <= SHARED_BYTES and key in self._shared:
            return self._shared[key]
        name = self.initializer(self.values.take(f"{self._base}.{hint}" if self._base else hint), array)
        if array.nbytes <= SHARED_BYTES:
            self._shared[key] = name
        return name

    def parameters(self, value: str, qparams: QParams) -> tuple[str, str]:
        """Scale and zero point of a quantized value, as QuantizeLinear and DequantizeLinear take them."""
        if value not in self._parameters:
            shape = () if qparams.axis is None else (-1,)
            arrays = {"scale": qparams.scale, "zero_point": qparams.zero_point.astype(qparams.dtype.numpy)}
            names = [self.initializer(self.values.take(f"{value}.{k}"), a.reshape(shape)) for k, a in arrays.items()]
            self._parameters[value] = names[0], names[1]
        return self._parameters[value]

    def quantize(self, x: str, value: str, qparams: QParams) -> str:
        """QuantizeLinear to the parameters of ``value``, whose name the result still has to be given."""
        axis = {} if qparams.axis is None else {"axis": qparams.axis}
        return self.emit("QuantizeLinear", [x, *self.parameters(value, qparams)], **axis)[0]

    def dequantize(self, x: str, value: str, qparams: QParams) -> str:
        """DequantizeLinear with the parameters of ``value``; ``x`` is the value or another with the same ones."""
        axis = {} if qparams.axis is None else {"axis": qparams.axis}
        return self.emit("DequantizeLinear", [x, *self.parameters(value, qparams)], **axis)[0]


def node_path(scope: str) -> str:
    """``layer1.0.conv1`` -> ``/layer1/0/conv1/``, which Netron shows as a path and importers read as one."""
    return "/" + "".join(f"{part}/" for part in scope.split(".") if part)
