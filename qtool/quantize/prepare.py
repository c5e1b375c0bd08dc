"""Decides what is quantized and what is observed: Graph + rules -> Prepared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from qtool.errors import QuantizationError
from qtool.ir import EMPTY, DType, Graph, Node, all_nodes, bodies_by_path, body_path
from qtool.ops import QuantRule, all_ops, attrs_of, get
from qtool.ops.registry import dynamic_twin
from qtool.passes import Fusion, fuse
from qtool.quantize.groups import ObserverGroup, activation_inputs, make_groups
from qtool.quantize.stubs import region_of
from qtool.recipe.match import Matches, resolve
from qtool.recipe.schema import Backend, Mode, QConfig, Rule, Stubs


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

    def mode_of(self, config: QConfig) -> Mode:
        """How the layers with this configuration are quantized."""
        return config.mode or self.mode


@dataclass(frozen=True)
class Prepared:
    """A fused float graph with everything decided that calibration and conversion need.

    ``qconfigs`` maps the nodes to quantize to their configuration; ``groups`` are the sets of values that share one
    observer (none where every layer is dynamic). ``bodies`` has the same for each body of control flow, by its path
    (``choice.then_branch``): it is prepared as a graph of its own, whose inputs and outputs are float.
    """

    graph: Graph
    fusion: Fusion
    options: PrepareOptions
    qconfigs: Mapping[str, QConfig]
    groups: tuple[ObserverGroup, ...]
    fallbacks: tuple[Fallback, ...]
    matches: Matches
    bodies: Mapping[str, Prepared] = field(default_factory=lambda: EMPTY)

    @cached_property
    def dynamic(self) -> frozenset[str]:
        """The nodes whose activations are quantized at run time."""
        return frozenset(name for name, config in self.qconfigs.items() if self.options.mode_of(config) is Mode.DYNAMIC)

    @cached_property
    def static(self) -> frozenset[str]:
        """The nodes whose activations are quantized with parameters from calibration."""
        return frozenset(self.qconfigs) - self.dynamic

    @property
    def observed(self) -> tuple[str, ...]:
        """Values that calibration has to look at, in execution order."""
        wanted = {name for group in self.groups if group.fixed is None for name in group.values}
        produced = (*self.graph.inputs, *(out for node in self.graph.nodes for out in node.outputs))
        return tuple(name for name in produced if name in wanted)

    @property
    def needs_data(self) -> bool:
        """Whether calibration has anything to look at, here or in a body."""
        return bool(self.observed) or any(body.needs_data for body in self.bodies.values())

    @property
    def quantized(self) -> tuple[str, ...]:
        """The nodes to quantize, those of bodies too, as ``all_nodes`` names them."""
        inner = (body_path(path, name) for path, body in self.bodies.items() for name in body.quantized)
        return (*self.qconfigs, *inner)

    @property
    def all_fallbacks(self) -> tuple[Fallback, ...]:
        """The layers that stay in float, those of bodies too."""
        inner = ((path, fallback) for path, body in self.bodies.items() for fallback in body.all_fallbacks)
        return (*self.fallbacks, *(replace(found, node=body_path(path, found.node)) for path, found in inner))


def prepare(graph: Graph, rules: Sequence[Rule], options: PrepareOptions = PrepareOptions()) -> Prepared:
    """Fuses the graph and decides which nodes are quantized and which values are observed.

    Rules are matched on the modules of the graph as it was loaded, so a rule may name any module the user knows of.
    Raises RecipeError for a rule that matches nothing and QuantizationError when nothing is left to quantize.
    """
    matches = resolve(rules, all_nodes(graph))
    fusion = _fusion(graph, matches, options)
    prepared = _prepare(fuse(graph, fusion), fusion, options, matches)
    if not prepared.quantized:
        why = "; ".join(sorted({fallback.reason for fallback in prepared.all_fallbacks})) or "it has no nodes"
        raise QuantizationError(f"nothing in '{graph.name}' would be quantized: {why}")
    return prepared


def _prepare(
    fused: Graph, fusion: Fusion, options: PrepareOptions, matches: Matches, *, is_body: bool = False
) -> Prepared:
    reasons = _reasons(fused, matches, options, is_body)
    chosen = {node.name: config for node in fused.nodes if not reasons[node.name] and (config := matches.of(node.name))}
    static = {name: config for name, config in chosen.items() if options.mode_of(config) is not Mode.DYNAMIC}
    fallbacks = tuple(Fallback(n.name, n.op, reasons[n.name]) for n in fused.nodes if reasons[n.name] and not n.graphs)
    bodies = {
        path: _prepare(body, fusion.within(body, path), options, matches.within(path), is_body=True)
        for path, body in bodies_by_path(fused).items()
    }
    groups = make_groups(fused, static)
    return Prepared(
        fused, fusion, options, MappingProxyType(chosen), groups, fallbacks, matches, MappingProxyType(bodies)
    )


def left_in_float(prepared: Prepared, reason: str) -> Prepared:
    """The same with everything in float that would need calibration."""
    dynamic = {name: config for name, config in prepared.qconfigs.items() if name in prepared.dynamic}
    found = {fallback.node: fallback.reason for fallback in prepared.fallbacks}
    found.update(dict.fromkeys(prepared.static, reason))
    listed = tuple(Fallback(n.name, n.op, found[n.name]) for n in prepared.graph.nodes if n.name in found)
    bodies = {path: left_in_float(body, reason) for path, body in prepared.bodies.items()}
    return replace(prepared, qconfigs=dynamic, groups=(), fallbacks=listed, bodies=bodies)


def _fusion(graph: Graph, matches: Matches, options: PrepareOptions) -> Fusion:
    """PyTorch's fusions, and those with a single rounding where the qconfig or the backend has them."""
    found = ((node.name, matches.of(node.name)) for node in all_nodes(graph))
    configs = {name: config for name, config in found if config and options.mode_of(config) is not Mode.DYNAMIC}
    single = tuple(name for name, config in configs.items() if config.single_rounding)
    return Fusion(options.fuse, tuple(configs) if options.backend is Backend.ONEDNN else single, single)


def _reasons(graph: Graph, matches: Matches, options: PrepareOptions, is_body: bool) -> dict[str, str]:
    """For each node, why it stays in float; "" where it is quantized. Stubs are in the outermost graph, and what goes
    into a body is float, so no body is between them."""
    region: frozenset[str] | None = None
    if options.stubs and options.mode is not Mode.DYNAMIC:
        region = frozenset() if is_body else region_of(graph, options.stubs)
    reasons: dict[str, str] = {}
    quantized: set[str] = set()
    for node in graph.nodes:
        config = matches.of(node.name)
        dynamic = config is not None and options.mode_of(config) is Mode.DYNAMIC
        if config is None:
            reason = matches.reason(node.name)
        elif options.mode_of(config) is Mode.DYNAMIC:
            reason = _why_not_dynamic(graph, node, config)
        elif region is not None and node.name not in region:
            reason = "outside of the stubs"
        else:
            reason = _why_not_static(graph, node, quantized)
        reasons[node.name] = reason
        if not reason and not dynamic:
            quantized.update(activation_inputs(graph, node), node.outputs)
    return reasons


def _why_not_dynamic(graph: Graph, node: Node, config: QConfig) -> str:
    if node.op == "embedding":
        small = config.embedding_bits is not None
        return (
            _why_not_constant(graph, node, (1,)) if small else "embedding_bits is not set, so its table stays in float"
        )
    if dynamic_twin(node.op) is None:
        names = (spec.dynamic_of for spec in all_ops().values())
        return f"dynamic mode quantizes {', '.join(filter(None, names))} only"
    return _why_not_constant(graph, node, _weights_of(node, dynamic=True))


def _why_not_static(graph: Graph, node: Node, quantized: set[str]) -> str:
    spec = get(node.op)
    if spec.rule is None or node.op in ("quantize", "dequantize"):
        return f"{node.op} has no int8 arithmetic"
    inputs = activation_inputs(graph, node)
    if not inputs or any(graph.values[name].type.dtype is not DType.FLOAT32 for name in (*inputs, *node.outputs)):
        return "it does not work on float32 activations"
    if node.op == "matmul" and not graph.initializers.keys().isdisjoint(node.inputs):
        return "one side of it is a constant, which a linear layer quantizes"
    if node.op == "resize" and (node.attrs.get("mode") == "cubic" or len(inputs) > 1):
        return "only nearest and linear resizing keeps to the range of its input, and only by constant sizes"
    if node.op == "pad" and not math.isfinite(attrs_of(node).value):
        return "infinity, which it pads with, has no int8"
    if spec.rule is QuantRule.ACCUMULATE:
        return _why_not_constant(graph, node, _weights_of(node, dynamic=False))
    if spec.rule is QuantRule.SAME_AS_INPUT and not quantized.intersection(inputs):
        return "it only moves values, and they come in float"
    return ""


def _why_not_constant(graph: Graph, node: Node, weights: tuple[int, ...]) -> str:
    if any(node.inputs[position] not in graph.initializers for position in weights):
        return "its weight is not a constant"
    return ""


def _weights_of(node: Node, *, dynamic: bool) -> tuple[int, ...]:
    """Positions of the inputs that are quantized as weights."""
    spec = dynamic_twin(node.op) if dynamic else get(node.op)
    if spec is None or not (dynamic or spec.rule is QuantRule.ACCUMULATE):
        return ()
    return spec.weights or (() if spec.weight is None else (spec.weight,))


def quantized_weights(prepared: Prepared, node: Node) -> tuple[int, ...]:
    """Positions of the inputs of a node that become integers in the quantized graph; none where it stays in float."""
    if node.name not in prepared.qconfigs:
        return ()
    return _weights_of(node, dynamic=node.name in prepared.dynamic)
