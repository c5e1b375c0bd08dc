"""Decides what is quantized and what is observed: Graph + rules -> Prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qtool.errors import QuantizationError
from qtool.ir import DType, Graph, Node
from qtool.ops import QuantRule, get
from qtool.passes import Fusion, fuse
from qtool.quantize.groups import ObserverGroup, activation_inputs, make_groups
from qtool.quantize.stubs import region_of
from qtool.recipe.match import Matches, resolve
from qtool.recipe.schema import Backend, Mode, QConfig, Rule, Stubs

DYNAMIC_OPS = ("linear",)


@dataclass(frozen=True)
class Fallback:
    """A layer that stays in float, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class PrepareOptions:
    """What of a recipe ``prepare`` uses besides the rules."""

    mode: Mode = Mode.STATIC
    backend: Backend = Backend.FBGEMM
    fuse: str | tuple[tuple[str, ...], ...] = "auto"
    stubs: Stubs | None = None


@dataclass(frozen=True)
class Prepared:
    """A fused float graph with everything decided that calibration and conversion need.

    ``qconfigs`` maps the nodes to quantize to their configuration; ``groups`` are the sets of values that share one
    observer (none in dynamic mode).
    """

    graph: Graph
    fusion: Fusion
    options: PrepareOptions
    qconfigs: Mapping[str, QConfig]
    groups: tuple[ObserverGroup, ...]
    fallbacks: tuple[Fallback, ...]
    matches: Matches

    @property
    def observed(self) -> tuple[str, ...]:
        """Values that calibration has to look at, in execution order."""
        wanted = {name for group in self.groups if group.fixed is None for name in group.values}
        produced = (*self.graph.inputs, *(out for node in self.graph.nodes for out in node.outputs))
        return tuple(name for name in produced if name in wanted)


def prepare(graph: Graph, rules: Sequence[Rule], options: PrepareOptions = PrepareOptions()) -> Prepared:
    """Fuses the graph and decides which nodes are quantized and which values are observed.

    Rules are matched on the modules of the graph as it was loaded, so a rule may name any module the user knows of.
    Raises RecipeError for a rule that matches nothing and QuantizationError when nothing is left to quantize.
    """
    matches = resolve(rules, graph.nodes)
    fusion = _fusion(graph, matches, options)
    fused = fuse(graph, fusion)
    reasons = _reasons(fused, matches, options)
    chosen = {node.name: config for node in fused.nodes if not reasons[node.name] and (config := matches.of(node.name))}
    if not chosen:
        why = "; ".join(sorted(set(reasons.values()))) or "it has no nodes"
        raise QuantizationError(f"nothing in '{graph.name}' would be quantized: {why}")
    groups = () if options.mode is Mode.DYNAMIC else make_groups(fused, chosen)
    fallbacks = tuple(Fallback(n.name, n.op, reasons[n.name]) for n in fused.nodes if reasons[n.name])
    return Prepared(fused, fusion, options, MappingProxyType(chosen), groups, fallbacks, matches)


def _fusion(graph: Graph, matches: Matches, options: PrepareOptions) -> Fusion:
    """PyTorch's fusions, and those with a single rounding where the qconfig or the backend has them."""
    if options.mode is Mode.DYNAMIC:
        return Fusion(options.fuse)
    configs = {node.name: config for node in graph.nodes if (config := matches.of(node.name))}
    single = tuple(name for name, config in configs.items() if config.single_rounding)
    return Fusion(options.fuse, tuple(configs) if options.backend is Backend.ONEDNN else single, single)


def _reasons(graph: Graph, matches: Matches, options: PrepareOptions) -> dict[str, str]:
    """For each node, why it stays in float; "" where it is quantized."""
    region = region_of(graph, options.stubs) if options.stubs and options.mode is not Mode.DYNAMIC else None
    reasons: dict[str, str] = {}
    quantized: set[str] = set()
    for node in graph.nodes:
        if matches.of(node.name) is None:
            reason = matches.reason(node.name)
        elif region is not None and node.name not in region:
            reason = "outside of the stubs"
        elif options.mode is Mode.DYNAMIC:
            reason = _why_not_dynamic(graph, node)
        else:
            reason = _why_not_static(graph, node, quantized)
        reasons[node.name] = reason
        if not reason:
            quantized.update(activation_inputs(graph, node), node.outputs)
    return reasons


def _why_not_dynamic(graph: Graph, node: Node) -> str:
    if node.op not in DYNAMIC_OPS:
        return f"dynamic mode quantizes {', '.join(DYNAMIC_OPS)} only"
    return _why_weight_not_constant(graph, node)


def _why_not_static(graph: Graph, node: Node, quantized: set[str]) -> str:
    spec = get(node.op)
    if spec.rule is None or node.op in ("quantize", "dequantize"):
        return f"{node.op} has no int8 arithmetic"
    inputs = activation_inputs(graph, node)
    if not inputs or any(graph.values[name].type.dtype is not DType.FLOAT32 for name in (*inputs, *node.outputs)):
        return "it does not work on float32 activations"
    if spec.rule is QuantRule.ACCUMULATE:
        return _why_weight_not_constant(graph, node)
    if spec.rule is QuantRule.SAME_AS_INPUT and not quantized.intersection(inputs):
        return "it only moves values, and they come in float"
    return ""


def _why_weight_not_constant(graph: Graph, node: Node) -> str:
    position = get(node.op).weight
    if position is None or node.inputs[position] not in graph.initializers:
        return "its weight is not a constant"
    return ""
