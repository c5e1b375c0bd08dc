"""Integer arithmetic in the forward pass: what a converted layer makes of its inputs, by the reference's definition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qtool.engine import int8
from qtool.engine.int8 import Call, Operand
from qtool.engine.reference import DEFINITIONS
from qtool.engine.requantize import arithmetic_of
from qtool.ir import Array, Node, QParams
from qtool.ops import attrs_of, get


def emulate(node: Node, arrays: Mapping[str, Array], qparams: Mapping[str, QParams], backend: str) -> tuple[Array, ...]:
    """The outputs of a quantized node, dequantized.

    ``arrays`` has its inputs: floats that lie on their grid, or integers already; ``qparams`` the parameters of its
    quantized inputs and of its outputs.
    """
    operands = tuple(_operand(name, arrays, qparams) if name else None for name in node.inputs)
    outputs = tuple(qparams[name] for name in node.outputs)
    call = Call(get(node.op), attrs_of(node), arithmetic_of(backend), operands, outputs)
    with np.errstate(all="ignore"):
        stored = DEFINITIONS.get(node.op, int8.by_float)(call)
    return tuple(out.dequantize(array) for out, array in zip(outputs, stored, strict=True))


def _operand(name: str, arrays: Mapping[str, Array], qparams: Mapping[str, QParams]) -> Operand:
    array, found = arrays[name], qparams.get(name)
    if found is None or array.dtype == found.dtype.numpy:
        return Operand(array, found)
    return Operand(found.quantize(array), found)
