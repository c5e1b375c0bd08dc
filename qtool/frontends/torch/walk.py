"""Converts the operators of one graph of an exported program, and of the graphs within it, in order."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from qtool.errors import ModelError
from qtool.frontends.torch.call import Call, GraphBuilder, Place, Result, add_constant
from qtool.frontends.torch.sizes import Sizes
from qtool.frontends.torch.table import SKIPPED, TABLE
from qtool.frontends.torch.values import Known, Unsupported
from qtool.ir import Graph, remake

Stack = dict[str, tuple[str, str]]
Problem = tuple[str, str, str]
"""Operator, module path, what is wrong."""
LAYER_MODULES = "torch.nn.modules."
QUIET = ("getitem", "sym_size", "to", "clone", "contiguous", "detach", "alias")
"""Operators that do not count when a module is asked whether it does one thing only."""
INLINED = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Operators that run a graph as it stands, and which argument it is."""


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


class Behind(Exception):  # noqa: N818  # no error: the node reads the result of one that failed
    """The node cannot be converted because one before it was not."""


class Walker:
    """``known`` holds what each node gives; nodes behind a failed one are passed over. ``scope`` is the module path of
    nodes that have none, those of the bodies of control flow."""

    def __init__(self, builder: GraphBuilder, sizes: Sizes, alone: set[str], scope: str = "") -> None:
        self.builder = builder
        self.sizes = sizes
        self.known: dict[Any, Any] = {}
        self.problems: list[Problem] = []
        self._alone = alone
        self._scope = scope

    def convert(self, node: Any) -> None:
        """One node of any kind but placeholders and outputs."""
        name, overload = packet_of(node.target)
        sized = isinstance(node.meta.get("val"), (int, torch.SymInt, torch.SymBool, torch.SymFloat))
        if name in SKIPPED or sized or node.op == "get_attr":
            return
        try:
            result = self._result(node, name, overload)
        except (Unsupported, ModelError) as error:
            self.problems.append((str(node.target), self._scope_of(node), str(error)))
        except Behind:
            pass
        else:
            self.known[node] = result

    def _result(self, node: Any, name: str, overload: str) -> Any:
        python_name = getattr(node.target, "__name__", "")
        if python_name == "getitem":
            return self._item(node) if node.users else None
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._higher_order(node, str(node.target))
        if name not in TABLE:
            raise Unsupported("it is not known")
        return self._refined(TABLE.get(overload, TABLE[name])(self._call(node)), node)

    def _scope_of(self, node: Any) -> str:
        return scope_of(node) or self._scope

    def _call(self, node: Any) -> Call:
        stack = stack_of(node)
        scope = self._scope_of(node)
        layer = bool(stack) and next(reversed(stack.values()))[1].startswith(LAYER_MODULES)
        alone = layer and bool(scope) and next(reversed(stack)) in self._alone
        args = self._arguments(node)
        return Call(str(node.target), args, node.meta["val"], Place(scope, alone), self.builder, self.sizes)

    def _arguments(self, node: Any) -> dict[str, Any]:
        """All arguments by name, those left out with their defaults."""
        formal = node.target._schema.arguments
        given = dict(zip((argument.name for argument in formal), node.args, strict=False)) | dict(node.kwargs)
        defaults = {a.name: a.default_value for a in formal if a.has_default_value() and a.name not in given}
        return {name: self.value(value) for name, value in (given | defaults).items()}

    def value(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            found = value.meta.get("val")
            if isinstance(found, (bool, int, float, torch.SymInt, torch.SymBool, torch.SymFloat)):
                return found
            if value not in self.known:
                raise Behind
            return self.known[value]
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value

    def _item(self, node: Any) -> Any:
        items, place = self.value(node.args[0]), node.args[1]
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
        self.builder.refine(known.name, self.sizes.shape(fake.shape))
        return replace(known, shape=self.builder.value(known.name).shape)

    # graphs within the graph

    def _higher_order(self, node: Any, name: str) -> Any:
        if name in INLINED:
            place = INLINED[name]
            return self.run(self._module(node.args[place]), [self.value(arg) for arg in node.args[place + 1 :]])
        if name == "cond":
            return self._refined(self._cond(node), node)
        raise Unsupported("it is not known")

    def _module(self, node: Any) -> Any:
        return getattr(node.graph.owning_module, str(node.target))

    def run(self, module: Any, args: Sequence[Any]) -> list[Any]:
        """What a graph gives for these arguments; Behind where a node of it cannot be converted."""
        given = iter(args)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.known[node] = next(given)
            elif node.op == "output":
                return [self.value(value) for value in node.args[0]]
            else:
                self.convert(node)
        raise Unsupported("a graph within it has no outputs")

    def _cond(self, node: Any) -> Sequence[Known]:
        """``torch.cond`` as an ``if`` with closed bodies; constants go into them, so that layers can be quantized."""
        condition, modules = self.value(node.args[0]), [self._module(arg) for arg in node.args[1:3]]
        if not isinstance(condition, Known):
            raise Unsupported("its condition is a comparison of sizes")
        call = Call("cond", {}, node.meta["val"], Place(self._scope_of(node), False), self.builder, self.sizes)
        operands = [self.value(arg) for arg in node.args[3]]
        operands = [
            replace(known, name=call.named(known), fill=None)
            if isinstance(known, Known) and known.array is None
            else known
            for known in operands
        ]
        captured = list(dict.fromkeys(known.name for known in operands if isinstance(known, Known) and known.name))
        bodies = [self._body(module, operands, call.place.scope) for module in modules]
        graphs: Mapping[str, Graph] = dict(zip(("then_branch", "else_branch"), bodies, strict=True))
        inputs = [call.named(condition), *captured]
        with self.builder.scope(call.place.scope) if call.place.scope else contextlib.nullcontext():
            names = self.builder.nodes("if", inputs, len(bodies[0].outputs), "if", None, graphs)
        return [Known(self.builder.value(name).dtype, self.builder.value(name).shape, name) for name in names]

    def _body(self, module: Any, operands: Sequence[Any], scope: str) -> Graph:
        builder, sizes = GraphBuilder("branch"), self.sizes.inside()
        walker = Walker(builder, sizes, set(), scope)
        places = [node for node in module.graph.nodes if node.op == "placeholder"]
        for known, place in zip(operands, places, strict=True):
            if isinstance(known, Known) and known.name and not builder.has(known.name):
                builder.input(known.name, known.shape, known.dtype)
                sizes.add_sources(known.name, place.meta["val"].shape)
        try:
            results = walker.run(module, operands)
        finally:
            self.problems += walker.problems
        names: list[str] = []
        for result in results:
            if not isinstance(result, Known):
                raise Unsupported("a branch gives a number, not a tensor")
            names.append(output_name(builder, result, names))
        return without_unused(builder.finish(names))


def output_name(builder: GraphBuilder, known: Known, taken: Sequence[str]) -> str:
    """The name of a graph's output: of a value that nodes give, and that is no output yet."""
    if known.fill is not None:
        raise Unsupported("one of its outputs does not depend on its inputs but for a size")
    name = known.name or add_constant(builder, known.array, known.hint or "constant")  # type: ignore[arg-type]
    if name in taken or name in builder.inputs or known.array is not None:
        return builder.node("identity", [name], name="output")
    return name


def modules_of_one(program: Any, parameters: set[str]) -> set[str]:
    """The calls of modules, by torch's keys, in which there is one operator to convert."""
    counted: Counter[str] = Counter()
    for node in program.graph.nodes:
        stack = stack_of(node)
        if stack and packet_of(node.target)[0] not in ("", *QUIET) and not _is_constant(node, parameters):
            counted[next(reversed(stack))] += 1
    return {key for key, count in counted.items() if count == 1}


def _is_constant(node: Any, parameters: set[str]) -> bool:
    """Whether a node reads parameters only, such as one that turns a weight."""
    return bool(node.all_input_nodes) and all(source.name in parameters for source in node.all_input_nodes)


def without_unused(graph: Graph) -> Graph:
    """Without nodes that no output depends on; inputs stay."""
    needed, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return remake(graph, kept[::-1])
