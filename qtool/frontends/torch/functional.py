"""Exported programs may hold operators that write to their arguments, and operators that are made of simpler ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from qtool.errors import ModelError
from qtool.frontends.torch.table import SKIPPED, TABLE


def functional(program: Any) -> Any:
    """The same program without effects that matter, and with operators that have no converter taken apart by torch."""
    if any(_writes(node) for node in _nodes(program)):
        program = _decomposed(program, {})
    unknown = {node.target for node in _nodes(program) if _is_unknown(node)}
    if not unknown:
        return program
    known = torch.export.default_decompositions()
    table = {target: known[target] for target in unknown if target in known}
    try:
        return _decomposed(program, table) if table else program
    except ModelError:
        return program  # the import then names what is not known


def _nodes(program: Any) -> Iterator[Any]:
    """Those of the graphs within the graph as well."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from module.graph.nodes


def _decomposed(program: Any, table: dict[Any, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return program.run_decompositions(table)
        except Exception as error:  # torch's passes raise anything for programs they cannot take
            text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:400]}"
            raise ModelError(f"torch cannot take its operators apart: {text}") from error


def _is_unknown(node: Any) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or isinstance(node.meta.get("val"), (int, torch.SymInt)):
        return False
    name = str(node.target._schema.name).partition("::")[2]
    return name not in TABLE and name.rstrip("_") not in TABLE and name not in SKIPPED


def _writes(node: Any) -> bool:
    """Whether the node writes to a tensor that something else may see: another reader, or a view of it."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    formal = node.target._schema.arguments
    given = dict(zip((argument.name for argument in formal), node.args, strict=False)) | dict(node.kwargs)
    written = [given.get(a.name) for a in formal if a.alias_info is not None and a.alias_info.is_write]
    return any(isinstance(arg, torch.fx.Node) and not _is_private(arg) for arg in written)


def _is_private(node: Any) -> bool:
    if node.op != "call_function" or len(node.users) != 1 or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return all(result.alias_info is None or result.alias_info.is_write for result in node.target._schema.returns)
