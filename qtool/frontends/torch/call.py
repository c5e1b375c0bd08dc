"""What a converter is given: the arguments of one operator of an exported program, and the graph to add to."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qtool.frontends.torch.sizes import Size, Sizes, expression, operation
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.ir import EMPTY, Array, Attr, Dim, DType, Node, Shape, TensorType
from qtool.ops import Builder, get, infer_node, parse_attrs
from qtool.ops.dims import is_unknown

Result = Known | Sequence[Known]
Convert = Callable[["Call"], Result]


class GraphBuilder(Builder):
    """A builder that is told sizes which inference cannot find."""

    def refine(self, name: str, shape: Shape) -> None:
        """Replaces sizes that inference leaves open by those of ``shape``."""
        value = self._values[name]
        if len(shape) == len(value.shape):
            dims = tuple(
                b if is_unknown(a) and not is_unknown(b) else a for a, b in zip(value.shape, shape, strict=True)
            )
            self._values[name] = replace(value, shape=dims)

    def has(self, name: str) -> bool:
        return name in self._values

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._inputs)

    def initializer(self, name: str) -> Array | None:
        return self._initializers.get(name)


@dataclass(frozen=True)
class Place:
    """Where an operator stands: its module path, and whether it is all that the module does."""

    scope: str
    alone: bool


@dataclass(frozen=True)
class Call:
    """One operator: ``args`` by the names of its schema, tensors as ``Known``, symbolic sizes as torch has them.

    ``result`` is what torch knows of the output: a fake tensor, or a list of them.
    """

    target: str
    args: Mapping[str, Any]
    result: Any
    place: Place
    builder: GraphBuilder
    sizes: Sizes

    # arguments

    def x(self, name: str = "self") -> Known:
        """A tensor argument; of a fused name such as "self|input" the first that there is."""
        for option in name.split("|"):
            if isinstance(self.args.get(option), Known):
                found: Known = self.args[option]
                return found
        raise Unsupported(f"its argument '{name}' is not a tensor")

    def maybe(self, name: str) -> Known | None:
        """A tensor argument that may be None."""
        return None if self.args.get(name) is None else self.x(name)

    def get(self, name: str, default: Any = None) -> Any:
        value = self.args.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        return self.number(self.get(name, default), name)

    def integers(self, name: str, count: int | None = None) -> tuple[int, ...]:
        """A list of ints; one stands for ``count`` of them, as torch has it."""
        value = self.get(name, ())
        items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        found = tuple(self.number(item, name) for item in items)
        return found * count if count is not None and len(found) == 1 else found

    def number(self, value: Any, name: str) -> int:
        expr = expression(value) if value is not None else None
        if not isinstance(expr, int):
            raise Unsupported(f"its argument '{name}' is {expr}, not a number")
        return expr

    def output(self, index: int | None = None) -> tuple[DType, Shape]:
        """Type and shape of the result, or of one of several."""
        fake = self.result if index is None else self.result[index]
        return dtype_of(fake), self.sizes.shape(fake.shape)

    # results

    def emit(self, op: str, inputs: Iterable[Known | None], **attrs: Attr) -> Known:
        """The operator that the module path stands for where the module does only this; see ``helper``."""
        return self._emit(op, list(inputs), 1, "" if self.place.alone else op, attrs)[0]

    def emit_all(self, op: str, inputs: Iterable[Known | None], outputs: int, /, **attrs: Attr) -> list[Known]:
        return self._emit(op, list(inputs), outputs, "" if self.place.alone else op, attrs)

    def helper(self, op: str, inputs: Iterable[Known | None], **attrs: Attr) -> Known:
        """An operator that only prepares or finishes; it is named after itself."""
        return self._emit(op, list(inputs), 1, op, attrs)[0]

    def under(self, owner: str) -> Call:
        """The call as one of the submodule that owns its parameters, where torch computes it in the module above."""
        inside = owner.startswith(f"{self.place.scope}.") if self.place.scope else bool(owner)
        return replace(self, place=Place(owner, alone=True)) if inside else self

    def _emit(
        self, op: str, inputs: list[Known | None], outputs: int, name: str, attrs: Mapping[str, Attr]
    ) -> list[Known]:
        while inputs and inputs[-1] is None and get(op).inputs[len(inputs) - 1].endswith("?"):
            inputs.pop()
        if all(known is None or known.array is not None for known in inputs):
            return self._compute(op, inputs, attrs)
        names = [self.named(known) if known is not None else "" for known in inputs]
        with self.builder.scope(self.place.scope) if self.place.scope else contextlib.nullcontext():
            made = self.builder.nodes(op, names, outputs, name, None, EMPTY, **attrs)
        return [self._value(out) for out in made]

    def _compute(self, op: str, inputs: list[Known | None], attrs: Mapping[str, Attr]) -> list[Known]:
        """Constants are computed at once: a weight that is turned or scaled must be one that can be quantized."""
        spec = get(op)
        arrays = [None if known is None else known.array for known in inputs]
        node = Node(op, op, tuple("x" if a is not None else "" for a in arrays), (), attrs)
        infer_node(node, [None if a is None else TensorType(DType.of(a), a.shape, a) for a in arrays])
        with np.errstate(all="ignore"):
            results = spec.reference(parse_attrs(spec.attrs, attrs, op), *arrays)
        return [constant_of(np.asarray(result, order="C")) for result in results]

    def _value(self, name: str) -> Known:
        value = self.builder.value(name)
        return Known(value.dtype, value.shape, name)

    def named(self, known: Known) -> str:
        """The name of a tensor in the graph; constants and filled tensors enter it here."""
        if known.array is not None:
            return add_constant(self.builder, known.array, known.hint or self.here("constant"))
        if known.fill is not None:
            return self.named(self._filled(known))
        return known.name

    def here(self, name: str) -> str:
        """A name in the module that the operator is in."""
        return f"{self.place.scope}.{name}" if self.place.scope else name

    def _filled(self, known: Known) -> Known:
        number = constant_of(np.array(known.fill, known.dtype.numpy))
        return self.helper("expand", [number, self.vector(known.shape)])

    # sizes

    def vector(self, sizes: Sequence[Size | Dim]) -> Known:
        """Sizes as an int64 tensor of one axis, computed at run time where they depend on the inputs."""
        parts = [self._size(self._expression(size)) for size in sizes]
        return self.helper("cat", parts, dim=0) if len(parts) != 1 else parts[0]

    def _expression(self, size: Size | Dim) -> Any:
        return self.sizes.parse(size) if isinstance(size, str) else expression(size)

    def scalar(self, size: Size, dtype: DType) -> Known:
        """A size as a number."""
        expr = expression(size)
        if isinstance(expr, int):
            return constant_of(np.array(expr, dtype.numpy))
        number = self.helper("reshape_to", [self._size(expr), constant_of(np.zeros(0, np.int64))])
        return self.cast(number, dtype)

    def _size(self, expr: Any) -> Known:
        if isinstance(expr, int) or expr.is_Integer:
            return constant_of(np.array([int(expr)], np.int64))
        if expr not in self.sizes.made:
            self.sizes.made[expr] = self._computed(expr)
        return self.sizes.made[expr]

    def _computed(self, expr: Any) -> Known:
        """A size as int64 of shape (1)."""
        if expr.is_Symbol:
            if expr not in self.sizes.sources:
                raise Unsupported(f"a size ({expr}) depends on the numbers in a tensor")
            source, axis = self.sizes.sources[expr]
            return self.helper("shape", [self._value(source)], start=axis, end=axis + 1)
        op, args = operation(expr)
        return functools.reduce(lambda a, b: self.helper(op, [a, b]), [self._size(arg) for arg in args])

    # what many converters need

    def cast(self, known: Known, dtype: DType) -> Known:
        if known.dtype is dtype:
            return known
        if known.fill is not None:
            return replace(known, dtype=dtype, fill=dtype.numpy.type(known.fill).item())
        return self.helper("cast", [known], to=dtype.value)

    def constant(self, number: bool | float, dtype: DType) -> Known:
        with np.errstate(over="ignore"):
            return constant_of(np.asarray(number).astype(dtype.numpy))

    def reshape(self, x: Known, shape: Sequence[Size | Dim], emit: bool = True) -> Known:
        """To sizes of which any number may be symbolic: one becomes -1, those that stay in place 0."""
        make = self.emit if emit else self.helper
        dims = tuple(dim if isinstance(dim, str) else self.sizes.dim(dim) for dim in shape)
        open_axes = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
        if len(open_axes) <= 1 and 0 not in dims:
            sizes = tuple(dim if isinstance(dim, int) else -1 for dim in dims)
            return make("reshape", [x], shape=sizes)
        kept = {a for a in open_axes if a < x.rank and x.shape[a] == dims[a] and not is_unknown(dims[a])}
        if len(set(open_axes) - kept) <= 1 and 0 not in dims:
            target = [0 if a in kept else d if isinstance(d, int) else -1 for a, d in enumerate(dims)]
            return make("reshape_to", [x, constant_of(np.array(target, np.int64))])
        return make("reshape_to", [x, self.vector(shape)], allowzero=0 in dims)


def add_constant(builder: GraphBuilder, array: Array, hint: str) -> str:
    """The array as an initializer, under its hint or a name like it."""
    name, number = hint, 1
    while builder.has(name):
        held = builder.initializer(name)
        if held is not None and held is array:
            return name
        name, number = f"{hint}_{number}", number + 1
    return builder.param(name, array)


def dtype_of(fake: Any) -> DType:
    name = str(fake.dtype).removeprefix("torch.")
    try:
        return DType(name)
    except ValueError:
        raise Unsupported(f"qtool has no tensors of {name}") from None
