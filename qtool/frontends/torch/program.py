"""Walks an exported program and builds the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind, OutputKind

from qtool.errors import ModelError
from qtool.frontends.torch.call import Call, GraphBuilder, Place, Result, add_constant, dtype_of
from qtool.frontends.torch.functional import functional
from qtool.frontends.torch.sizes import Sizes
from qtool.frontends.torch.table import SKIPPED, TABLE
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.ir import Graph, remake
from qtool.ir.verify import verify
from qtool.ops import check_types

Stack = dict[str, tuple[str, str]]
PARAMETERS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
LAYER_MODULES = "torch.nn.modules."
QUIET = ("getitem", "sym_size", "to", "clone", "contiguous", "detach", "alias")
"""Operators that do not count when a module is asked whether it does one thing only."""
SHOWN = 20


def import_program(program: Any, name: str) -> Graph:
    """The graph of a ``torch.export.ExportedProgram``, checked.

    ModelError lists all operators that cannot be converted, with the modules they are in.
    """
    program = functional(program)
    try:
        graph = Importer(program, name).run()
    except Unsupported as error:
        raise ModelError(f"{name} cannot be converted: {error}") from error
    verify(graph)
    check_types(graph)
    return graph


def stack_of(node: Any) -> Stack:
    """The modules that a node is in, outermost first; markers of torch's own are none."""
    stack = node.meta.get("nn_module_stack") or {}
    return {key: entry for key, entry in stack.items() if not key.startswith("_")}


def scope_of(node: Any) -> str:
    """The module path, such as ``layer1.0.conv1``."""
    paths = [entry[0] for entry in stack_of(node).values()]
    return paths[-1] if paths else ""


def packet_of(target: Any) -> tuple[str, str]:
    """The operator's name without and with that of its overload: ("add", "add.Tensor"); ``_`` behind it is dropped."""
    if not isinstance(target, torch._ops.OpOverload):
        return "", ""
    name = str(target._schema.name).partition("::")[2]
    if name not in TABLE and name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name, f"{name}.{target._overloadname}"


class Importer:
    """One import. ``_known`` holds what each node of the program gives; nodes behind a failed one are passed over."""

    def __init__(self, program: Any, name: str) -> None:
        self._program = program
        self._builder = GraphBuilder(name)
        self._sizes = Sizes()
        self._known: dict[str, Any] = {}
        self._problems: list[tuple[str, str, str]] = []
        """Operator, module path, what is wrong."""
        self._alone = _modules_of_one(program)

    def run(self) -> Graph:
        specs = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        outputs: list[str] = []
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name])
            elif node.op == "output":
                outputs = [] if self._problems else self._outputs(node)
            else:
                self._convert(node)
        if self._problems:
            raise ModelError(self._complaint())
        return _without_unused(self._builder.finish(outputs))

    def _placeholder(self, node: Any, spec: Any) -> None:
        fake = node.meta.get("val")
        if spec.kind in PARAMETERS:
            self._known[node.name] = self._parameter(spec)
        elif spec.kind is not InputKind.USER_INPUT:
            raise Unsupported(f"its input '{node.name}' is of the kind {spec.kind.name}")
        elif isinstance(fake, torch.Tensor):
            name = self._builder.input(node.name, self._sizes.add_input(node.name, fake.shape), dtype_of(fake))
            self._known[node.name] = Known(dtype_of(fake), self._builder.value(name).shape, name)
        elif isinstance(fake, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise Unsupported(f"its input '{node.name}' is a number, not a tensor")
        else:
            self._known[node.name] = fake  # a constant of the example: the program is made for it

    def _parameter(self, spec: Any) -> Any:
        if spec.target in self._program.state_dict:
            tensor = self._program.state_dict[spec.target]
        else:
            tensor = self._program.constants[spec.target]
        try:
            dtype_of(tensor)
            return constant_of(np.ascontiguousarray(tensor.detach().cpu().numpy()), spec.target)
        except Unsupported as error:
            raise Unsupported(f"its parameter '{spec.target}': {error}") from None

    # nodes

    def _convert(self, node: Any) -> None:
        name, overload = packet_of(node.target)
        if name in SKIPPED or isinstance(node.meta.get("val"), (int, torch.SymInt, torch.SymBool, torch.SymFloat)):
            return
        try:
            if getattr(node.target, "__name__", "") == "getitem":
                if node.users:
                    self._known[node.name] = self._item(node)
            elif name not in TABLE:
                raise Unsupported("it is not known")
            else:
                convert = TABLE.get(overload, TABLE[name])
                self._known[node.name] = self._refined(convert(self._call(node)), node)
        except (Unsupported, ModelError) as error:
            self._problems.append((str(node.target), scope_of(node), str(error)))
        except _Behind:
            pass

    def _call(self, node: Any) -> Call:
        stack = stack_of(node)
        scope = scope_of(node)
        layer = bool(stack) and next(reversed(stack.values()))[1].startswith(LAYER_MODULES)
        alone = layer and bool(scope) and next(reversed(stack)) in self._alone
        args = self._arguments(node)
        return Call(str(node.target), args, node.meta["val"], Place(scope, alone), self._builder, self._sizes)

    def _arguments(self, node: Any) -> dict[str, Any]:
        """All arguments by name, those left out with their defaults."""
        formal = node.target._schema.arguments
        given = dict(zip((argument.name for argument in formal), node.args, strict=False)) | dict(node.kwargs)
        defaults = {a.name: a.default_value for a in formal if a.has_default_value() and a.name not in given}
        return {name: self._value(value) for name, value in (given | defaults).items()}

    def _value(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            found = value.meta.get("val")
            if isinstance(found, (bool, int, float, torch.SymInt, torch.SymBool, torch.SymFloat)):
                return found
            if value.name not in self._known:
                raise _Behind
            return self._known[value.name]
        if isinstance(value, (list, tuple)):
            return [self._value(item) for item in value]
        return value

    def _item(self, node: Any) -> Any:
        items, place = self._value(node.args[0]), node.args[1]
        if place >= len(items):
            raise Unsupported(f"its output {place} is only made for training")
        return items[place]

    def _refined(self, result: Result, node: Any) -> Result:
        """The result, with the sizes that torch knows and inference does not."""
        fakes = node.meta["val"]
        if isinstance(result, Known):
            return self._refine(result, fakes)
        return [self._refine(known, fake) for known, fake in zip(result, fakes, strict=False)]

    def _refine(self, known: Known, fake: Any) -> Known:
        if not known.name or not isinstance(fake, torch.Tensor):
            return known
        self._builder.refine(known.name, self._sizes.shape(fake.shape))
        return replace(known, shape=self._builder.value(known.name).shape)

    # the end

    def _outputs(self, node: Any) -> list[str]:
        specs = self._program.graph_signature.output_specs
        names: list[str] = []
        for value, spec in zip(node.args[0], specs, strict=True):
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise Unsupported(f"it changes '{spec.target}' as it runs (a state that qtool's graphs do not have)")
            known = self._value(value)
            if isinstance(known, Known):
                names.append(self._output(known, names))
            elif known is not None:
                raise Unsupported("one of its outputs is a number, not a tensor")
        if not names:
            raise Unsupported("it has no outputs")
        return names

    def _output(self, known: Known, taken: Sequence[str]) -> str:
        """The name of an output: of a value that nodes give, and that is no output yet."""
        if known.fill is not None:
            raise Unsupported("one of its outputs does not depend on its inputs but for a size")
        name = known.name or add_constant(self._builder, known.array, known.hint or "constant")  # type: ignore[arg-type]
        if name in taken or name in self._sizes_inputs() or known.array is not None:
            return self._builder.node("identity", [name], name="output")
        return name

    def _sizes_inputs(self) -> set[str]:
        signature = self._program.graph_signature
        return {str(name) for name in signature.user_inputs}

    def _complaint(self) -> str:
        counted: dict[tuple[str, str], list[str]] = {}
        for operator, scope, problem in self._problems:
            counted.setdefault((operator, problem), []).append(scope or "the model itself")
        lines = [
            f"  {operator} in {', '.join(dict.fromkeys(scopes))}: {problem}"
            for (operator, problem), scopes in counted.items()
        ]
        more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        return "\n".join(
            [
                f"operators that cannot be converted: {len(self._problems)}",
                *lines[:SHOWN],
                *more,
                "Write these modules with other operators, or leave them out of the exported module.",
            ]
        )


def _modules_of_one(program: Any) -> set[str]:
    """The calls of modules, by torch's keys, in which there is one operator to convert."""
    signature = program.graph_signature
    parameters = {spec.arg.name for spec in signature.input_specs if spec.kind in PARAMETERS}
    counted: Counter[str] = Counter()
    for node in program.graph.nodes:
        stack = stack_of(node)
        if stack and packet_of(node.target)[0] not in ("", *QUIET) and not _is_constant(node, parameters):
            counted[next(reversed(stack))] += 1
    return {key for key, count in counted.items() if count == 1}


def _is_constant(node: Any, parameters: set[str]) -> bool:
    """Whether a node reads parameters only, such as one that turns a weight."""
    return bool(node.all_input_nodes) and all(source.name in parameters for source in node.all_input_nodes)


class _Behind(Exception):  # noqa: N818  # no error: the node reads the result of one that failed
    """The node cannot be converted because one before it was not."""


def _without_unused(graph: Graph) -> Graph:
    """Without nodes that no output depends on; inputs stay."""
    needed, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return remake(graph, kept[::-1])
