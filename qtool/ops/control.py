"""Control flow: ``if``, ``loop`` and ``scan`` carry bodies, which the engine runs; defined as ONNX has them.

Bodies are closed: what they read from outside are the node's last inputs, and the last inputs of every body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from qtool.errors import EngineError
from qtool.ir import Array, Dim, DType, Graph, Node, Shape, TensorType
from qtool.ops.activation import NoAttrs
from qtool.ops.dims import UNKNOWN, axis_of, is_unknown, need_integers, product, same_shape, same_size, spell
from qtool.ops.registry import Attrs, OpSpec, attrs_of, register, require

Types = tuple[TensorType, ...]
Bodies = Mapping[str, Graph]
THEN, ELSE, BODY = "then_branch", "else_branch", "body"


@dataclass(frozen=True)
class LoopAttrs(Attrs):
    """The first ``carried`` inputs behind trip count and condition are handed on from one iteration to the next.

    The body takes (iteration, condition, carried ..., captured ...) and gives (condition, carried ..., rows ...); the
    node gives the last of what is carried, and the rows of all iterations.
    """

    carried: int = 0


@dataclass(frozen=True)
class ScanAttrs(Attrs):
    """Inputs are ``states`` states, ``num_scan_inputs`` sequences, and what is captured.

    The body takes (states ..., one element of each sequence ..., captured ...) and gives (states ..., elements ...).
    Empty tuples mean axis 0 and direction 0 (forward; 1 is backward) for all.
    """

    num_scan_inputs: int
    states: int = 0
    scan_input_axes: tuple[int, ...] = ()
    scan_output_axes: tuple[int, ...] = ()
    scan_input_directions: tuple[int, ...] = ()
    scan_output_directions: tuple[int, ...] = ()


def captured_count(node: Node) -> int:
    """How many of the last inputs of a node with bodies, and of each body, are what the bodies read from outside."""
    if node.op == "if":
        return len(node.inputs) - 1
    attrs = attrs_of(node)
    own = 2 + attrs.carried if node.op == "loop" else attrs.states + attrs.num_scan_inputs
    return len(node.inputs) - int(own)


def is_true(name: str, tensor: TensorType | None) -> None:
    """The tensor, if it is there, is one bool."""
    if tensor is not None:
        single = tensor.dtype is DType.BOOL and same_size(product(tensor.shape), 1)
        require(single, f"{tensor.dtype.value} {spell(tensor.shape)} as {name}", "one bool")


def _enter(name: str, body: Graph, given: Sequence[TensorType]) -> dict[str, Dim]:
    """Holds that the body can take these inputs; gives the size outside for each of its symbols."""
    got = f"{len(body.inputs)} inputs of the body '{name}'"
    require(len(body.inputs) == len(given), got, f"{len(given)}, as many as it is given")
    sizes: dict[str, Dim] = {}
    for input_, outside in zip(body.inputs, given, strict=True):
        inside = body.values[input_].type
        fits = inside.dtype is outside.dtype and same_shape(inside.shape, outside.shape)
        got = f"{outside.dtype.value} {spell(outside.shape)} for '{input_}' of the body '{name}'"
        require(fits, got, f"{inside.dtype.value} {spell(inside.shape)}")
        for symbol, size in zip(inside.shape, outside.shape, strict=True):
            if isinstance(symbol, str) and not is_unknown(symbol):
                sizes.setdefault(symbol, size)
    return sizes


def _outputs(body: Graph, sizes: Mapping[str, Dim]) -> Types:
    """The body's outputs as they are seen outside: symbols of its own mean nothing there."""
    types = [body.values[name].type for name in body.outputs]
    return tuple(TensorType(type_.dtype, tuple(_outside(dim, sizes) for dim in type_.shape)) for type_ in types)


def _outside(dim: Dim, sizes: Mapping[str, Dim]) -> Dim:
    if isinstance(dim, int):
        return dim
    parts = dim.split("*")
    found = [int(part) if part.isdecimal() and len(part) < 18 else sizes.get(part, UNKNOWN) for part in parts]
    return UNKNOWN if UNKNOWN in found else product(found)


def _joined(what: str, a: TensorType, b: TensorType) -> TensorType:
    """What is known of a value that may come from either of two places."""
    got = f"{a.dtype.value} {spell(a.shape)} and {b.dtype.value} {spell(b.shape)} for {what}"
    require(a.dtype is b.dtype and len(a.shape) == len(b.shape), got, "one element type and one rank")
    shape: Shape = tuple(x if x == y else UNKNOWN for x, y in zip(a.shape, b.shape, strict=True))
    return TensorType(a.dtype, shape)


def if_type(_: NoAttrs, graphs: Bodies, cond: TensorType, *captured: TensorType) -> Types:
    is_true("the condition", cond)
    left, right = (_outputs(graphs[name], _enter(name, graphs[name], captured)) for name in (THEN, ELSE))
    require(len(left) == len(right), f"{len(left)} and {len(right)} outputs of the branches", "as many")
    return tuple(_joined("an output", a, b) for a, b in zip(left, right, strict=True))


def loop_type(
    attrs: LoopAttrs, graphs: Bodies, trips: TensorType | None, cond: TensorType | None, *values: TensorType
) -> Types:
    need_integers(trip_count=trips)
    require(trips is None or same_size(product(trips.shape), 1), "several trip counts", "one")
    is_true("the condition", cond)
    require(0 <= attrs.carried <= len(values), f"{attrs.carried} carried of {len(values)} values", "at most all")
    body = graphs[BODY]
    sizes = _enter(BODY, body, (TensorType(DType.INT64, ()), TensorType(DType.BOOL, ()), *values))
    made = _outputs(body, sizes)
    require(len(made) > attrs.carried, f"{len(made)} outputs of the body", "the condition and all that is carried")
    is_true("the body's condition", made[0])
    carried = tuple(
        _joined("a carried value", *pair)
        for pair in zip(values[: attrs.carried], made[1 : attrs.carried + 1], strict=True)
    )
    rows = (TensorType(type_.dtype, (UNKNOWN, *type_.shape)) for type_ in made[attrs.carried + 1 :])
    return (*carried, *rows)


def scan_type(attrs: ScanAttrs, graphs: Bodies, *values: TensorType) -> Types:
    states, count, body = attrs.states, attrs.num_scan_inputs, graphs[BODY]
    require(states >= 0 and count >= 1, f"{states} states and {count} sequences", "at least one sequence")
    require(len(values) >= states + count, f"{len(values)} inputs", f"at least {states + count}")
    axes = listed("scan_input_axes", attrs.scan_input_axes, count)
    listed("scan_input_directions", attrs.scan_input_directions, count)
    length: Dim = UNKNOWN
    elements: list[TensorType] = []
    for sequence, axis in zip(values[states : states + count], axes, strict=True):
        place = axis_of(axis, len(sequence.shape), "scan_input_axes")
        length = length if is_unknown(sequence.shape[place]) else sequence.shape[place]
        elements.append(TensorType(sequence.dtype, (*sequence.shape[:place], *sequence.shape[place + 1 :])))
    made = _outputs(body, _enter(BODY, body, (*values[:states], *elements, *values[states + count :])))
    require(len(made) >= states, f"{len(made)} outputs of the body", f"at least {states} states")
    kept = (_joined("a state", *pair) for pair in zip(values[:states], made[:states], strict=True))
    out_axes = listed("scan_output_axes", attrs.scan_output_axes, len(made) - states)
    listed("scan_output_directions", attrs.scan_output_directions, len(made) - states)
    return (*kept, *(_stacked(type_, axis, length) for type_, axis in zip(made[states:], out_axes, strict=True)))


def _stacked(type_: TensorType, axis: int, length: Dim) -> TensorType:
    place = axis_of(axis, len(type_.shape) + 1, "scan_output_axes")
    return TensorType(type_.dtype, (*type_.shape[:place], length, *type_.shape[place:]))


def listed(name: str, values: tuple[int, ...], count: int) -> tuple[int, ...]:
    """One entry each; none at all means 0 for all."""
    require(len(values) in (0, count), f"{len(values)} {name}", f"{count}")
    return values or (0,) * count


def _not_here(*_: object) -> NoReturn:
    raise EngineError("control flow runs in the engine, which has the bodies")


def _reference(_: Attrs, *__: Array | None) -> tuple[Array, ...]:
    _not_here()


register(
    OpSpec("if", NoAttrs, ("cond", "captured*"), if_type, _reference, onnx=("If",), empty=True, bodies=(THEN, ELSE))
)
register(
    OpSpec(
        "loop",
        LoopAttrs,
        ("trip_count?", "cond?", "values*"),
        loop_type,
        _reference,
        onnx=("Loop",),
        empty=True,
        bodies=(BODY,),
    )
)
register(OpSpec("scan", ScanAttrs, ("values*",), scan_type, _reference, onnx=("Scan",), empty=True, bodies=(BODY,)))
