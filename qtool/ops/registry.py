"""The operator registry: one frozen record an operator holds all that the rest of qtool knows of it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtool.errors import ModelError
from qtool.ir import Array, Attr, Node, TensorType


class QuantRule(enum.Enum):
    """How the quantization parameters of an operator's output come about."""

    FREE = "free"
    """The output has an observer of its own; both inputs and output are quantized (add, mul, hardswish)."""
    SAME_AS_INPUT = "same-as-input"
    """Moves or selects values: inputs and output share one set of parameters (max_pool, relu, reshape, cat)."""
    SAME_AS_OUTPUT = "same-as-output"
    """Inputs are requantized to the output's parameters."""
    FIXED = "fixed"
    """The output's range is known in advance: ``OpSpec.fixed`` is (scale, zero_point) for quint8 (sigmoid, tanh)."""
    ACCUMULATE = "accumulate"
    """Products with a quantized weight are summed in int32 and requantized (conv, linear)."""


@dataclass(frozen=True)
class Attrs:
    """Base of every operator's attributes; a subclass is a frozen dataclass of plain values and tuples."""


@dataclass(frozen=True)
class VjpCall:
    """What a vector-Jacobian product is made from.

    ``inputs`` and ``outputs`` are the arrays of the forward pass (an input left out is None), ``grads`` the derivatives
    of the loss by each output (None: that output has no part in it), ``needed`` says which inputs' are wanted.
    """

    attrs: Any
    inputs: tuple[Array | None, ...]
    outputs: tuple[Array, ...]
    grads: tuple[Array | None, ...]
    needed: tuple[bool, ...]


Vjp = Callable[[VjpCall], tuple[Array | None, ...]]
"""Derivatives of the loss by each input, of its shape and type: None where it is not needed or has none (integers)."""


@dataclass(frozen=True)
class OpSpec:
    """One operator.

    ``inputs`` names the formal inputs in order; a trailing ``?`` marks an optional one, a trailing ``*`` (only the
    last) any number of them. ``infer(attrs, input types)`` gives the output types (an optional input left out is None)
    and raises ModelError with what was got and expected. ``reference(attrs, *arrays)`` is the float definition in NumPy
    and gives a tuple of arrays. ``rule`` is None for an operator that is never quantized.
    ``kernel`` names the native lowering, "" where there is none and the reference runs.
    """

    name: str
    attrs: type[Attrs]
    inputs: tuple[str, ...]
    infer: Callable[..., tuple[TensorType, ...]]
    reference: Callable[..., tuple[Array, ...]]
    rule: QuantRule | None = None
    fixed: tuple[float, int] | None = None
    weight: int | None = None
    """Position of the input that is a weight (quantized by the qconfig's weight observer), None where there is none."""
    bias: int | None = None
    """Position of the input that is a bias (stays float32 in the graph)."""
    channel_axis: int = 0
    """Axis of the weight along which per-channel parameters run."""
    onnx: tuple[str, ...] = ()
    kernel: str = ""
    dynamic_of: str = ""
    """The float operator that this one is with its activations quantized at run time."""
    weights: tuple[int, ...] = ()
    """Positions of the inputs that are weights, where there are several and ``weight`` is None."""
    empty: bool = False
    """Whether tensors without elements are taken and made."""
    bodies: tuple[str, ...] = ()
    """Names of the graphs that a node carries; ``infer`` then gets the mapping of them after the attributes, and the
    engine runs the node, not ``reference``."""
    vjp: Vjp | None = None
    """The vector-Jacobian product of ``reference``, in NumPy; None for an operator that no training goes through."""


INT64_MAX = 2**63 - 1
MAX_PLACE = 200
"""Characters of a value's name that the symbols of its unknown sizes keep."""
FLOAT32_LIMIT = (2.0 - 2.0**-24) * 2.0**127
"""Smallest number that float32 rounds to infinity."""

_REGISTRY: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    """Adds one record; a name can be taken once."""
    if spec.name in _REGISTRY:
        raise ValueError(f"operator {spec.name} is registered twice")
    _REGISTRY[spec.name] = spec
    return spec


def get(name: str) -> OpSpec:
    """The record of an operator; ModelError for a name that is not known."""
    try:
        return _REGISTRY[name]
    except KeyError:
        raise ModelError(f"operator '{name}' is not known to qtool") from None


def dynamic_twin(name: str) -> OpSpec | None:
    """The record of the operator that does the same with activations quantized at run time."""
    return next((spec for spec in _REGISTRY.values() if spec.dynamic_of == name), None)


def all_ops() -> Mapping[str, OpSpec]:
    """Every record by name, in order of registration."""
    return types.MappingProxyType(_REGISTRY)


def attrs_of(node: Node) -> Any:
    """The node's attributes as its operator's frozen dataclass; ModelError names the node and the attribute."""
    return parse_attrs(get(node.op).attrs, node.attrs, f"{node.op} '{node.name}'")


def parse_attrs(cls: type[Attrs], attrs: Mapping[str, Attr], where: str) -> Any:
    """Builds ``cls`` from plain values, with each field's type checked."""
    fields, hints = _fields(cls)  # type: ignore[arg-type]  # mypy asks the class for its instances' hash
    unknown = sorted(set(attrs) - set(fields))
    if unknown:
        raise ModelError(f"{where}: unknown attribute {unknown[0]!r}; expected {', '.join(fields) or 'none'}")
    for name, f in fields.items():
        if name not in attrs:
            if f.default is dataclasses.MISSING:
                raise ModelError(f"{where}: attribute {name!r} is missing")
        elif not _matches(attrs[name], hints[name]):
            raise ModelError(f"{where}: attribute {name!r} is {attrs[name]!r}; expected {_spell(hints[name])}")
    return cls(**attrs)


@functools.cache
def _fields(cls: type[Attrs]) -> tuple[dict[str, dataclasses.Field[Any]], dict[str, Any]]:
    """Fields and their types by name; kept, since working types out takes longer than all other checks."""
    return {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)


def plain_attrs(attrs: Attrs) -> dict[str, Attr]:
    """The inverse of ``parse_attrs``: a mapping for a Node, without the fields that have their default value."""
    return {f.name: getattr(attrs, f.name) for f in dataclasses.fields(attrs) if getattr(attrs, f.name) != f.default}


def infer_node(node: Node, inputs: Sequence[TensorType | None]) -> tuple[TensorType, ...]:
    """Output types of a node; errors name the node. Sizes that only a run can tell are called ``?<output>.<axis>``."""
    spec = get(node.op)
    _check_arity(spec, node)
    attrs = attrs_of(node)
    try:
        names = tuple(node.graphs)
        require(sorted(names) == sorted(spec.bodies), f"bodies {names}", f"{spec.bodies or 'none'}")
        _need_elements(() if spec.empty else inputs)
        bodies = (node.graphs,) if spec.bodies else ()
        outputs = _without_values(spec.infer(attrs, *bodies, *inputs), inputs)
        _need_elements(() if spec.empty else outputs)
        return tuple(_named(type_, place) for type_, place in zip(outputs, _places(node, len(outputs)), strict=True))
    except ModelError as error:
        raise ModelError(f"{node.op} '{node.name}': {error}") from error


def _places(node: Node, count: int) -> list[str]:
    """What the sizes of each output are called that are only known at run time."""
    names = [*node.outputs, *(f"{node.name}.{i}" for i in range(len(node.outputs), count))][:count]
    return ["".join(c for c in name if c != "*")[-MAX_PLACE:] for name in names]


def _named(type_: TensorType, place: str) -> TensorType:
    """The type with a symbol of its own for each unknown size."""
    if not any(isinstance(dim, str) and "?" in dim.split("*") for dim in type_.shape):
        return type_
    shape = tuple(
        f"?{place}.{axis}" if isinstance(dim, str) and "?" in dim.split("*") else dim
        for axis, dim in enumerate(type_.shape)
    )
    return dataclasses.replace(type_, shape=shape)


def _without_values(outputs: Sequence[TensorType], inputs: Sequence[TensorType | None]) -> tuple[TensorType, ...]:
    """The types without the arrays that inference functions hand on together with the type of an input."""
    given = [type_.value for type_ in inputs if type_ is not None and type_.value is not None]
    return tuple(
        dataclasses.replace(type_, value=None) if any(type_.value is value for value in given) else type_
        for type_ in outputs
    )


def _need_elements(types_: Iterable[TensorType | None]) -> None:
    for found in types_:
        require(found is None or 0 not in found.shape, "a tensor without elements", "no size of 0")


def _check_arity(spec: OpSpec, node: Node) -> None:
    required = sum(1 for name in spec.inputs if name[-1] not in "?*")
    variadic = bool(spec.inputs) and spec.inputs[-1].endswith("*")
    got = len(node.inputs)
    rest = node.inputs[len(spec.inputs) - 1 :] if variadic else ()
    named = all((*node.inputs[:required], *rest))
    if got < required or (not variadic and got > len(spec.inputs)) or not named:
        raise ModelError(f"{node.op} '{node.name}': got {got} inputs, expected {', '.join(spec.inputs) or 'none'}")


def _matches(value: Attr, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, arg) for arg in args)
    if hint is type(None):
        return value is None
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_matches(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_matches, value, args))
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float)) and _is_float32(value)
    if hint is int:
        return isinstance(value, int) and abs(value) <= INT64_MAX
    return isinstance(value, hint)


def _is_float32(value: float) -> bool:
    """Infinities are, NaN is not; a number that would overflow in float32 is not either."""
    return abs(value) < FLOAT32_LIMIT or value in (float("inf"), -float("inf"))


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def require(condition: bool, got: str, expected: str) -> None:
    """Raises ModelError "got …, expected …" unless the condition holds; for shape inference."""
    if not condition:
        raise ModelError(f"got {got}, expected {expected}")
