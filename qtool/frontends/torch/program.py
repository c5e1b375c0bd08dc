"""Builds the graph of an exported program."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind, OutputKind

from qtool.errors import ModelError
from qtool.frontends.torch.call import GraphBuilder, dtype_of
from qtool.frontends.torch.functional import functional
from qtool.frontends.torch.sizes import Sizes
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.frontends.torch.walk import Problem, Walker, modules_of_one, output_name, without_unused
from qtool.ir import Graph
from qtool.ir.verify import verify
from qtool.ops import check_types

PARAMETERS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
SHOWN = 20


def import_program(program: Any, name: str, copy: bool = False) -> Graph:
    """The graph of a ``torch.export.ExportedProgram``, checked; ``copy`` where its parameters belong to someone else.

    ModelError lists all operators that cannot be converted, with the modules they are in.
    """
    program = functional(program)
    try:
        graph = Importer(program, name, copy).run()
    except Unsupported as error:
        raise ModelError(f"{name} cannot be converted: {error}") from error
    verify(graph)
    check_types(graph)
    return graph


class Importer:
    """One import."""

    def __init__(self, program: Any, name: str, copy: bool) -> None:
        self._program = program
        self._copy = copy
        signature = program.graph_signature
        self._specs = {spec.arg.name: spec for spec in signature.input_specs}
        parameters = {name for name, spec in self._specs.items() if spec.kind in PARAMETERS}
        self._walker = Walker(GraphBuilder(name), Sizes(), modules_of_one(program, parameters))
        self._builder, self._sizes = self._walker.builder, self._walker.sizes

    def run(self) -> Graph:
        outputs: list[str] = []
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._walker.known[node] = self._placeholder(node, self._specs[node.name])
            elif node.op != "output":
                self._walker.convert(node)
            elif not self._walker.problems:
                outputs = self._outputs(node)
        if self._walker.problems:
            raise ModelError(complaint(self._walker.problems))
        return without_unused(self._builder.finish(outputs))

    def _placeholder(self, node: Any, spec: Any) -> Any:
        fake = node.meta.get("val")
        if spec.kind in PARAMETERS:
            return self._parameter(spec)
        if spec.kind is not InputKind.USER_INPUT:
            raise Unsupported(f"its input '{node.name}' is of the kind {spec.kind.name}")
        if isinstance(fake, torch.Tensor):
            name = self._builder.input(node.name, self._sizes.add_input(node.name, fake.shape), dtype_of(fake))
            return Known(dtype_of(fake), self._builder.value(name).shape, name)
        if isinstance(fake, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise Unsupported(f"its input '{node.name}' is a number, not a tensor")
        return fake  # a constant of the example: the program is made for it

    def _parameter(self, spec: Any) -> Any:
        if spec.target in self._program.state_dict:
            tensor = self._program.state_dict[spec.target]
        else:
            tensor = self._program.constants[spec.target]
        try:
            dtype_of(tensor)
            array = tensor.detach().cpu().numpy()
            return constant_of(np.array(array, order="C", copy=self._copy or None), spec.target)
        except Unsupported as error:
            raise Unsupported(f"its parameter '{spec.target}': {error}") from None

    def _outputs(self, node: Any) -> list[str]:
        specs = self._program.graph_signature.output_specs
        names: list[str] = []
        for value, spec in zip(node.args[0], specs, strict=True):
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise Unsupported(f"it changes '{spec.target}' as it runs (a state that qtool's graphs do not have)")
            known = self._walker.value(value)
            if isinstance(known, Known):
                names.append(output_name(self._builder, known, names))
            elif known is not None:
                raise Unsupported("one of its outputs is a number, not a tensor")
        if not names:
            raise Unsupported("it has no outputs")
        return names


def complaint(problems: list[Problem]) -> str:
    """All that cannot be converted, a line an operator, and what to do."""
    counted: dict[tuple[str, str], list[str]] = {}
    for operator, scope, problem in problems:
        counted.setdefault((operator, problem), []).append(scope or "the model itself")
    lines = [
        f"  {operator} in {', '.join(dict.fromkeys(scopes))}: {problem}"
        for (operator, problem), scopes in counted.items()
    ]
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(
        [
            f"operators that cannot be converted: {len(problems)}",
            *lines[:SHOWN],
            *more,
            "Write these modules with other operators, or leave them out of the exported module.",
        ]
    )
