"""Symbolic sizes: torch has them as sympy expressions, qtool as products of symbols, and as tensors at run time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from qtool.frontends.torch.values import Known, Unsupported
from qtool.ir import Dim, Shape
from qtool.ops.dims import UNKNOWN, product

Size = Any
"""An int, or a torch.SymInt."""
BATCH = "N"


def expression(size: Size) -> Any:
    """An int, or the sympy expression of a size that depends on the inputs."""
    if isinstance(size, (bool, int)):
        return int(size)
    expr = size.node.expr
    return int(expr) if expr.is_Integer else expr


class Sizes:
    """The symbols of one program: what qtool calls them, and the input axes that they are the sizes of."""

    def __init__(self) -> None:
        self._names: dict[Any, str] = {}
        self.sources: dict[Any, tuple[str, int]] = {}
        self.made: dict[Any, Known] = {}
        """Sizes that the graph has as tensors already."""

    def add_input(self, name: str, sizes: Iterable[Size]) -> Shape:
        """The shape of a graph input. The first symbol met on a first axis is the batch."""
        shape = []
        for axis, size in enumerate(sizes):
            expr = expression(size)
            if not isinstance(expr, int) and expr.is_Symbol and expr not in self._names:
                self._names[expr] = BATCH if axis == 0 and BATCH not in self._names.values() else str(expr)
                self.sources[expr] = (name, axis)
            shape.append(self.dim(size))
        if any(dim == UNKNOWN for dim in shape):
            raise Unsupported(f"its input '{name}' has sizes {tuple(map(str, sizes))}, not one symbol an axis")
        return tuple(shape)

    def inside(self) -> Sizes:
        """For the body of control flow: the same names, with sources and tensors of its own."""
        other = Sizes()
        other._names = self._names
        return other

    def add_sources(self, name: str, sizes: Iterable[Size]) -> None:
        """A tensor whose axes tell the sizes that are symbols."""
        for axis, size in enumerate(sizes):
            expr = expression(size)
            if not isinstance(expr, int) and expr.is_Symbol:
                self.sources.setdefault(expr, (name, axis))

    def dim(self, size: Size) -> Dim:
        """The size as a graph has it: a number, a product of symbols, or ``"?"`` for anything else."""
        expr = expression(size)
        if isinstance(expr, int):
            return expr
        factors: list[Dim] = []
        for base, power in expr.as_powers_dict().items():
            known = int(base) if base.is_Integer else self._names.get(base)
            if known is None or not power.is_Integer or power < 1:
                return UNKNOWN
            factors += [known] * int(power)
        return product(factors)

    def parse(self, dim: str) -> Any:
        """The inverse of ``dim``."""
        symbols = {name: symbol for symbol, name in self._names.items()}
        factors = [int(part) if part.isdecimal() else symbols.get(part) for part in dim.split("*")]
        if None in factors:
            raise Unsupported("a size depends on the numbers in a tensor")
        return math.prod(factors)

    def shape(self, sizes: Iterable[Size]) -> Shape:
        return tuple(map(self.dim, sizes))


def operation(expr: Any) -> tuple[str, tuple[Any, ...]]:
    """The outermost operation of an expression, as an operator on int64, and what it works on.

    Sizes are never negative, so a division that rounds towards zero rounds down.
    """
    operator = OPERATIONS.get(type(expr).__name__)
    if operator is None:
        raise Unsupported(f"a size is computed as {expr}")
    return operator, expr.args


OPERATIONS: Mapping[str, str] = {
    "Add": "add",
    "Mul": "mul",
    "FloorDiv": "div",
    "CleanDiv": "div",
    "Mod": "mod",
    "PythonMod": "mod",
    "Max": "max",
    "Min": "min",
}
