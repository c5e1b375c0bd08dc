"""Collects the operators of one native call: buffers, the layouts in which values lie in them, and the steps."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from qtool.engine.lowering.layout import Layout, Sizes, layouts_agree, permutation
from qtool.engine.lowering.view import View, dense
from qtool.engine.requantize import Arithmetic, arithmetic_of
from qtool.ir import Array, DType, Graph, QParams, Value
from qtool.native import Kind, abi, supports

FLIP = (np.arange(256) ^ 0x80).astype(np.uint8)
"""int8 bytes to bytes shifted by 128, and back."""

MAX_RANK = 6


class Unsupported(Exception):  # noqa: N818 (no error: the reference runs the operator)
    """The native engine has no way to run an operator as it stands; the text says why."""


@dataclass(frozen=True)
class Source:
    """What lowering reads: the graph with every shape known.

    ``constants`` are the initializers and what follows from them alone. ``wants`` says in which layout the readers of a
    value want it. ``cache`` keeps arrangements of constants while one plan is made.
    """

    graph: Graph
    shapes: Mapping[str, Sizes]
    constants: Mapping[str, Array]
    wants: Mapping[str, Layout] = field(default_factory=dict)
    cache: dict[tuple[str, str], Array] = field(default_factory=dict)

    def value(self, name: str) -> Value:
        return self.graph.values[name]

    def qparams(self, name: str) -> QParams | None:
        return self.graph.values[name].qparams

    def constant(self, name: str, what: str) -> Array:
        """The array of a constant; Unsupported where the value is computed."""
        if name not in self.constants:
            raise Unsupported(f"the {what} is not a constant")
        return self.constants[name]

    def per_tensor(self, name: str) -> QParams:
        """The parameters of an activation; Unsupported where it is not quantized per tensor."""
        qparams = self.qparams(name)
        if qparams is None or qparams.axis is not None:
            raise Unsupported(f"'{name}' is not quantized per tensor")
        return qparams

    def need_float(self, *names: str) -> None:
        """Unsupported unless all values are float32."""
        for name in filter(None, names):
            value = self.value(name)
            if value.qparams is not None or value.dtype is not DType.FLOAT32:
                raise Unsupported(f"'{name}' is not float32")

    @property
    def arithmetic(self) -> Arithmetic:
        return arithmetic_of(self.graph.backend)


class Role(enum.Enum):
    """What an array of the caller is for."""

    INPUT = "input"
    OUTPUT = "output"
    CONSTANT = "constant"


@dataclass(frozen=True)
class Binding:
    """An external buffer: the value (or the constant's array) that is bound to it."""

    role: Role
    name: str
    array: Array | None = None


@dataclass(frozen=True)
class Step:
    """One native operator, for the node ``node``. ``in_place``: the output may lie where the first input lies.

    It runs ``pieces`` times, once for each piece of the batch."""

    kind: Kind
    inputs: tuple[int, ...]
    output: int
    args: abi.Args
    node: str
    in_place: bool = False
    pieces: int = 1


class Segment:
    """The steps of one native call, and its buffers by number.

    Activations of int8 are held as bytes shifted by 128, from where they come in to where they leave.

    The first steps may be for one of ``pieces`` pieces of the batch, with the shapes of a piece in ``source``, until
    ``end_pieces``.
    """

    def __init__(self, source: Source, pieces: int = 1) -> None:
        self.source = source
        self.pieces = pieces
        self.node = ""
        """Name of the node that is being lowered."""
        self.steps: list[Step] = []
        self.sizes: list[int] = []
        self.bindings: dict[int, Binding] = {}
        self.piece_bytes: dict[int, int] = {}
        """Of the buffers that hold the whole batch while steps are for a piece: bytes of one piece."""
        self._forms: dict[str, dict[Layout, int]] = {}
        self._later: dict[str, tuple[Layout, Callable[[], int]]] = {}
        self._views: dict[str, View] = {}

    # ---- what lowering asks ------------------------------------------------------------------------------------

    def shape(self, name: str) -> Sizes:
        return self.source.shapes[name]

    def wants(self, name: str) -> Layout:
        """The layout in which the readers of a value want it."""
        return self.source.wants.get(name, Layout.PLAIN)

    def layouts(self, name: str) -> tuple[Layout, ...]:
        """The layouts in which a value is there already: both where they are the same bytes."""
        forms = self._forms_of(name)
        return (Layout.PLAIN, Layout.LAST) if layouts_agree(self.shape(name)) else tuple(forms)

    # ---- buffers -------------------------------------------------------------------------------------------------

    def read(self, name: str, layout: Layout, *, direct: bool = False) -> int:
        """The buffer of a value in a layout, brought there if need be.

        ``direct`` is for operators that read exactly what they are given (quantize, copy, permute, matmul ...): the
        others may read past the end, and get arrays of the caller as copies in the arena.
        """
        layout = self._canonical(name, layout)
        forms = self._forms_of(name)
        if layout not in forms:
            forms[layout] = self._permuted(name, forms[layout.other], layout.other, layout)
        if not direct and self._is_foreign(forms[layout]):
            forms[layout] = self._copied(forms[layout], None)
        return forms[layout]

    def as_given(self, name: str) -> int:
        """The buffer of a value for an operator that reads exactly; a constant is not copied for it."""
        if name not in self.source.constants:
            return self.read(name, Layout.PLAIN, direct=True)
        array = np.ascontiguousarray(self.source.constants[name])
        buffer = self.buffer(array.nbytes)
        self.bindings[buffer] = Binding(Role.CONSTANT, name, array)
        return buffer

    def write(self, name: str, layout: Layout) -> int:
        """A new buffer for a value that the node makes."""
        return self.alias(name, layout, self.buffer(math.prod(self.shape(name)) * self._item_bytes(name)))

    def alias(self, name: str, layout: Layout, buffer: int) -> int:
        """Says that a value lies in a buffer that is there already."""
        self._forms.setdefault(name, {})[self._canonical(name, layout)] = buffer
        return buffer

    def later(self, name: str, layout: Layout, make: Callable[[], int], view: View | None = None) -> None:
        """Says how a value is made, in a layout and a buffer that ``make`` gives, should anybody read it; and where it
        lies without that."""
        self._later[name] = (layout, make)
        if view is not None:
            self._views[name] = view

    def found(self, name: str) -> tuple[int, Layout]:
        """The buffer in which a value lies, in whichever layout."""
        layout, buffer = next(iter(self._forms_of(name).items()))
        return buffer, layout

    def view(self, name: str) -> View:
        """Where a value lies, for operators that read by strides, and exactly; not copied if that can be."""
        if self.is_view(name):
            return self._views[name]
        return View(self.read(name, Layout.PLAIN, direct=True), dense(self.shape(name)))

    def is_view(self, name: str) -> bool:
        """Whether a value only lies inside of another one, so far."""
        return name in self._later and name in self._views

    def buffer(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def emit(self, kind: Kind, inputs: tuple[int, ...], output: int, args: abi.Args, *, in_place: bool = False) -> None:
        """Adds an operator; Unsupported where the library does not have its kind."""
        if not supports(kind):
            raise Unsupported(f"the native library has no {kind.name}")
        self.steps.append(Step(kind, inputs, output, args, self.node, in_place, self.pieces))

    def permute(self, source: int, target: int, item: int, change: tuple[Sizes, Sizes]) -> None:
        """Adds a permutation of elements of ``item`` bytes; ``change`` is (sizes, order)."""
        sizes, order = change
        if len(sizes) > MAX_RANK:
            raise Unsupported(f"a permutation of rank {len(sizes)}")
        rest = (0,) * (MAX_RANK - len(sizes))
        args = abi.make(abi.PermuteArgs, rank=len(sizes), element_bytes=item, shape=sizes + rest, order=order + rest)
        self.emit(Kind.PERMUTE, (source,), target, args)

    # ---- pieces of a batch ---------------------------------------------------------------------------------------

    def end_pieces(self, source: Source, kept: Collection[str]) -> None:
        """From here on steps are for the whole batch, whose shapes ``source`` has; ``kept`` are the values that they
        read, or that leave."""
        forms = [self._forms_of(name) for name in kept if name in self._forms or name in self._later]
        moving = {buffer for form in forms for buffer in form.values()}
        moving -= {buffer for buffer, binding in self.bindings.items() if binding.role is Role.CONSTANT}
        for buffer in moving | {buffer for buffer in self.bindings if self._is_foreign(buffer)}:
            self.piece_bytes[buffer] = self.sizes[buffer]
            self.sizes[buffer] *= self.pieces
        self.source, self.pieces = source, 1

    # ---- the way out ---------------------------------------------------------------------------------------------

    def leave(self, name: str) -> None:
        """Hands a value to the caller, row-major and in its own element type."""
        buffer = self.read(name, Layout.PLAIN, direct=True)
        binding = Binding(Role.OUTPUT, name)
        if self._is_shifted(name):
            self.bindings[self._copied(buffer, FLIP)] = binding
        elif buffer in self.bindings or any(buffer in step.inputs for step in self.steps):
            self.bindings[self._copied(buffer, None)] = binding
        else:  # nobody here reads it: the last operator may write to the caller's array itself
            self.bindings[buffer] = binding

    # ---- inside --------------------------------------------------------------------------------------------------

    def _forms_of(self, name: str) -> dict[Layout, int]:
        if name in self._later:
            layout, make = self._later.pop(name)
            self.alias(name, layout, make())
        if name not in self._forms:
            self._forms[name] = self._entered(name)
        return self._forms[name]

    def _entered(self, name: str) -> dict[Layout, int]:
        """The form of a value that comes from outside."""
        if name in self.source.constants:
            return {Layout.PLAIN: self._constant(name, Layout.PLAIN)}
        buffer = self.buffer(math.prod(self.shape(name)) * self._item_bytes(name))
        self.bindings[buffer] = Binding(Role.INPUT, name)
        return {Layout.PLAIN: self._copied(buffer, FLIP) if self._is_shifted(name) else buffer}

    def _constant(self, name: str, layout: Layout) -> int:
        array = self.source.constants[name]
        arranged = array.transpose(layout.axes(array.ndim))
        if self._is_shifted(name):
            arranged = arranged.view(np.uint8) ^ np.uint8(0x80)
        buffer = self.buffer(array.nbytes)
        self.bindings[buffer] = Binding(Role.CONSTANT, name, with_slack(arranged))
        return buffer

    def _permuted(self, name: str, buffer: int, source: Layout, target: Layout) -> int:
        if name in self.source.constants:
            return self._constant(name, target)
        shape = self.shape(name)
        change = permutation(shape, source.axes(len(shape)), target.axes(len(shape)))
        assert change is not None, "layouts that agree are one"
        moved = self.buffer(self.sizes[buffer])
        self.permute(buffer, moved, self._item_bytes(name), change)
        return moved

    def _copied(self, buffer: int, table: Array | None) -> int:
        target = self.buffer(self.sizes[buffer])
        args = abi.make(abi.CopyArgs, rows=1, row_bytes=self.sizes[buffer], lut=table)
        self.emit(Kind.COPY, (buffer,), target, args)
        return target

    def _is_foreign(self, buffer: int) -> bool:
        """Whether a buffer is an array of the caller, behind which nothing may be read."""
        return buffer in self.bindings and self.bindings[buffer].role is Role.INPUT

    def _canonical(self, name: str, layout: Layout) -> Layout:
        return Layout.PLAIN if layouts_agree(self.shape(name)) else layout

    def _is_shifted(self, name: str) -> bool:
        value = self.source.value(name)
        return value.qparams is not None and value.dtype is DType.INT8

    def _item_bytes(self, name: str) -> int:
        return self.source.value(name).dtype.numpy.itemsize


def with_slack(array: Array) -> Array:
    """A C-contiguous copy with bytes after its end that kernels may read."""
    memory = np.zeros(array.nbytes + abi.SLACK, np.uint8)
    copy = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
