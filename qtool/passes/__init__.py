"""Graph -> Graph rewrites, and the order they run in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from qtool.errors import QtoolError
from qtool.ir import Graph
from qtool.ir.verify import verify
from qtool.ops.check import check_types
from qtool.passes.clean import drop_dead, drop_identities, fold_constants
from qtool.passes.fold_bn import fold_batch_norm
from qtool.passes.fuse_activation import fuse_clamp, fuse_relu
from qtool.passes.fuse_lists import fuse_lists
from qtool.passes.fuse_residual import fuse_residual
from qtool.passes.lower_qdq import float_names, lower_qdq, quantized_name

__all__ = ["clean", "float_names", "fuse", "lower_qdq", "quantized_name", "run_passes"]

Pass = Callable[[Graph], Graph]

CLEAN: tuple[Pass, ...] = (
    drop_dead,  # first: the rest need not look at what nobody reads
    drop_identities,  # dropout between layers would hide the patterns below
    fold_constants,  # makes weights out of expressions of weights
    drop_dead,  # what folding left behind
)


def fuse(
    graph: Graph,
    mode: str | Sequence[Sequence[str]] = "auto",
    *,
    residual: Collection[str] = (),
    clamp: Collection[str] = (),
) -> Graph:
    """Fuses layers as the recipe's ``fuse`` says: "auto", "none", or lists of module names.

    ``residual`` and ``clamp`` name the convolutions and linears that may take over a residual add (one rounding) or a
    clamp other than relu (finer scale), which changes bits against PyTorch; they matter for "auto" only.
    """
    if mode == "none":
        return clean(graph)
    if not isinstance(mode, str):
        return run_passes(graph, (*CLEAN, lambda g: fuse_lists(g, mode)))
    passes: tuple[Pass, ...] = (
        *CLEAN,
        fold_batch_norm,  # before activations: the batch norm stands between
        fuse_relu,  # before residual: the add then carries its relu along
        lambda g: fuse_clamp(g, clamp),
        lambda g: fuse_residual(g, residual),
        drop_dead,
    )
    return run_passes(graph, passes)


def clean(graph: Graph) -> Graph:
    """Only what changes no number."""
    return run_passes(graph, CLEAN)


def run_passes(graph: Graph, passes: Sequence[Pass]) -> Graph:
    """Runs the passes in order, with the graph's structure and shapes verified after each that changed it."""
    for number, step in enumerate(passes):
        before, graph = graph, step(graph)
        if graph is before:
            continue
        try:
            verify(graph)
            check_types(graph)
        except QtoolError as error:
            name = getattr(step, "__name__", f"number {number}")
            raise AssertionError(f"pass {name} broke the graph: {error}") from error
    return graph
