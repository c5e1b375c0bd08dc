"""Graph -> Graph rewrites, and the order they run in. Bodies of control flow are rewritten as the graph around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qtool.errors import ModelError
from qtool.ir import Graph, Json, all_nodes, with_bodies
from qtool.ir.rewrite import drop_dead
from qtool.ir.verify import verify
from qtool.ops.check import check_types
from qtool.ops.qdq import float_names, lower_qdq, quantized_name
from qtool.passes.capture_constants import capture_constants
from qtool.passes.clean import drop_identities, fold_constants
from qtool.passes.fold_bn import fold_batch_norm
from qtool.passes.fold_pad import fold_pad
from qtool.passes.fuse_activation import fuse_clamp, fuse_relu
from qtool.passes.fuse_bias import fuse_bias
from qtool.passes.fuse_dynamic import fuse_dynamic
from qtool.passes.fuse_lists import fuse_lists, lists_within, own_lists
from qtool.passes.fuse_residual import fuse_residual
from qtool.passes.linear_matmul import linear_matmul
from qtool.passes.recognize_gelu import recognize_gelu
from qtool.passes.recognize_norm import recognize_layer_norm
from qtool.passes.recognize_softmax import recognize_softmax
from qtool.passes.recognize_swish import recognize_swish

__all__ = [
    "Fusion",
    "clean",
    "float_names",
    "fuse",
    "lower_qdq",
    "optimize",
    "quantized_name",
    "run_passes",
    "simplify",
]

Pass = Callable[[Graph], Graph]

CLEAN: tuple[Pass, ...] = (
    drop_dead,  # first: the rest need not look at what nobody reads
    drop_identities,  # dropout between layers would hide the patterns below
    fold_constants,  # makes weights out of expressions of weights
    linear_matmul,  # once the weights are constants
    capture_constants,  # once they are folded; the bodies come after the graph around them
    drop_dead,  # what folding left behind
)

SIMPLIFY: tuple[Pass, ...] = (
    *CLEAN,  # first: constants and dropout would hide the patterns below
    fold_pad,  # exporters write a layer's padding as a node of its own
    recognize_softmax,
    recognize_gelu,
    recognize_swish,
    recognize_layer_norm,
    fuse_dynamic,  # before the biases, which are its own then
    fuse_bias,  # behind layer norm, whose own bias is an add too
    drop_dead,  # what the patterns left behind
)
"""For models that another tool wrote: what it spelt out becomes one operator again."""


@dataclass(frozen=True)
class Fusion:
    """What to fuse: ``mode`` is "auto", "none", or lists of module names as the recipe has them.

    ``residual`` and ``clamp`` name the convolutions and linears that may take over a residual add (one rounding) or a
    clamp other than relu (finer scale), which changes bits against PyTorch; they matter for "auto" only. Nodes of
    bodies go by the names that ``all_nodes`` gives them.
    """

    mode: str | tuple[tuple[str, ...], ...] = "auto"
    residual: tuple[str, ...] = ()
    clamp: tuple[str, ...] = ()

    def within(self, body: Graph, path: str) -> Fusion:
        """What of it is for a body."""
        mode = self.mode if isinstance(self.mode, str) else lists_within(body, self.mode)
        return Fusion(mode, _within(self.residual, path), _within(self.clamp, path))

    def to_json(self) -> dict[str, Json]:
        """Plain values for the file, so that the same fusion can be repeated on the float model."""
        mode: Json = self.mode if isinstance(self.mode, str) else [list(names) for names in self.mode]
        return {"mode": mode, "residual": list(self.residual), "clamp": list(self.clamp)}

    @staticmethod
    def from_json(plain: Any) -> Fusion:
        """The inverse of ``to_json``; ModelError for anything else."""
        try:
            mode = plain["mode"]
            lists = mode if isinstance(mode, str) else tuple(tuple(map(str, names)) for names in mode)
            return Fusion(lists, tuple(map(str, plain["residual"])), tuple(map(str, plain["clamp"])))
        except (TypeError, KeyError):
            raise ModelError("the file does not record how its layers were fused; quantize the model again") from None


def _within(names: Sequence[str], path: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(f"{path}.") for name in names if name.startswith(f"{path}."))


def fuse(graph: Graph, fusion: Fusion = Fusion()) -> Graph:
    """The graph with layers fused; RecipeError for a list of modules that cannot be."""
    fused = run_passes(graph, _fusing(graph, fusion))
    return with_bodies(fused, lambda body, path: fuse(body, fusion.within(body, path)))


def _fusing(graph: Graph, fusion: Fusion) -> tuple[Pass, ...]:
    if fusion.mode == "none":
        return CLEAN
    if not isinstance(fusion.mode, str):
        lists = own_lists(graph, fusion.mode)
        return (*CLEAN, lambda g: fuse_lists(g, lists))
    return (
        *CLEAN,
        fold_batch_norm,  # before activations: the batch norm stands between
        fuse_relu,  # before residual: the add then carries its relu along
        lambda g: fuse_clamp(g, fusion.clamp),
        lambda g: fuse_residual(g, fusion.residual),
        drop_dead,
    )


def optimize(graph: Graph) -> Graph:
    """Every fusion there is, for running a float graph at its best; a quantized graph is only lowered."""
    if graph.is_quantized:
        return lower_qdq(graph)
    names = tuple(node.name for node in all_nodes(graph))
    return fuse(graph, Fusion("auto", names, names))


def simplify(graph: Graph) -> Graph:
    """An imported graph with layers instead of the arithmetic that its exporter spelt them out in.

    In one that is quantized already, what lies between a layer and the quantize behind it goes into the layer: with one
    rounding, as the file says, and in int8.
    """
    graph = with_bodies(run_passes(graph, SIMPLIFY), lambda body, _: simplify(body))
    backends = [body.backend for node in graph.nodes for body in node.graphs.values() if body.backend]
    graph = replace(graph, backend=graph.backend or next(iter(backends), ""))
    if not graph.is_quantized:
        return graph
    names = tuple(node.name for node in graph.nodes)
    return run_passes(graph, (fuse_relu, lambda g: fuse_clamp(g, names), lambda g: fuse_residual(g, names), fuse_relu))


def clean(graph: Graph) -> Graph:
    """Only what changes no number."""
    return with_bodies(run_passes(graph, CLEAN), lambda body, _: clean(body))


def run_passes(graph: Graph, passes: Sequence[Pass]) -> Graph:
    """Runs the passes in order, with the graph's structure and shapes verified after each that changed it."""
    for number, step in enumerate(passes):
        before, graph = graph, step(graph)
        if graph is before:
            continue
        try:
            verify(graph)
            check_types(graph)
        except ModelError as error:
            name = getattr(step, "__name__", f"number {number}")
            raise AssertionError(f"pass {name} broke the graph: {error}") from error
    return graph
