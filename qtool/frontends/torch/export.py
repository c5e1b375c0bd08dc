"""Runs torch.export on a module."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from qtool.errors import ModelError
from qtool.frontends.torch.sizes import expression

LEAST_BATCH = 2
"""torch.export takes a size of 1 for one that never changes."""
MOST_TEXT = 600


def export(module: torch.nn.Module, example: tuple[Any, ...], dynamic_batch: bool) -> Any:
    """The exported program; ModelError where torch cannot make one, or none for a batch of any size."""
    shapes = None
    if dynamic_batch:
        batch = _batch_of(example)
        example = pytree.tree_map(lambda leaf: _enlarged(leaf, batch), example)
        shapes = _shapes(example, max(batch, LEAST_BATCH)).dynamic_shapes(module, example)
    try:
        with torch.no_grad():
            program = torch.export.export(module, example, dynamic_shapes=shapes)
    except Exception as error:  # whatever the module's own code raises
        hint = "; with dynamic_batch=False the batch stays that of the example" if dynamic_batch else ""
        text = f"{type(error).__name__}: {str(error).strip().partition(chr(10) * 2)[0][:MOST_TEXT]}"
        raise ModelError(f"torch.export cannot export {type(module).__name__}{hint}: {text}") from error
    if dynamic_batch and not _has_dynamic_size(program):
        raise ModelError(
            f"{type(module).__name__} only works for the batch size of the example ({batch}): somewhere it uses that "
            "number itself; export it with dynamic_batch=False, or take sizes from x.shape in forward"
        )
    return program


def _is_batched(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim >= 1 and leaf.shape[0] == batch


def _batch_of(example: Any) -> int:
    for leaf in pytree.tree_leaves(example):
        if isinstance(leaf, torch.Tensor) and leaf.ndim >= 1:
            return int(leaf.shape[0])
    raise ModelError("none of the example inputs is a tensor with a batch axis; use dynamic_batch=False")


def _enlarged(leaf: Any, batch: int) -> Any:
    """A batch of one doubled, so that torch sees a size."""
    return torch.cat([leaf] * LEAST_BATCH) if batch == 1 and _is_batched(leaf, batch) else leaf


def _shapes(example: Any, batch: int) -> Any:
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves(example):
        if _is_batched(leaf, batch):
            shapes[leaf] = {0: torch.export.Dim.AUTO}
    return shapes


def _has_dynamic_size(program: Any) -> bool:
    inputs = set(program.graph_signature.user_inputs)
    return any(
        not isinstance(expression(size), int)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs and isinstance(node.meta.get("val"), torch.Tensor)
        for size in node.meta["val"].shape
    )
