"""Which values share one observer, and with it one scale and zero_point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qtool.ir import DType, Graph, Node, QParams
from qtool.ops import QuantRule, get
from qtool.recipe.schema import ObserverConfig, QConfig, QDType


@dataclass(frozen=True)
class ObserverGroup:
    """Values with one set of parameters, in execution order; ``fixed`` where they are known without looking."""

    values: tuple[str, ...]
    config: ObserverConfig
    fixed: QParams | None = None


def activation_inputs(graph: Graph, node: Node) -> tuple[str, ...]:
    """The inputs that carry activations: neither parameters nor constants."""
    return tuple(dict.fromkeys(name for name in node.inputs if name and name not in graph.initializers))


def make_groups(graph: Graph, qconfigs: Mapping[str, QConfig]) -> tuple[ObserverGroup, ...]:
    """Groups every input and output of the quantized nodes.

    As in PyTorch's FX mode: an operator that only moves values shares the observer of its input, a concatenation makes
    one group of all its inputs, and everything else has an observer of its own, configured by the node that makes the
    value (or, for a value that is made in float, by the first node that reads it).
    """
    configs: dict[str, ObserverConfig] = {}
    fixed: dict[str, QParams] = {}
    sets = _DisjointSets()
    for node in graph.nodes:
        if node.name not in qconfigs:
            continue
        config = qconfigs[node.name].activation
        for name in (*activation_inputs(graph, node), *node.outputs):
            configs.setdefault(name, config)
            sets.add(name)
        _join(graph, node, config, sets, fixed)
    return tuple(
        ObserverGroup(members, configs[members[0]], fixed.get(sets.find(members[0])))
        for members in sets.members(_execution_order(graph))
    )


def _join(graph: Graph, node: Node, config: ObserverConfig, sets: _DisjointSets, fixed: dict[str, QParams]) -> None:
    spec = get(node.op)
    inputs = activation_inputs(graph, node)
    if spec.rule is QuantRule.FIXED and spec.fixed is not None:
        fixed[sets.find(node.outputs[0])] = fixed_qparams(spec.fixed, config.dtype)
    if spec.rule is not QuantRule.SAME_AS_INPUT:
        return
    roots = {sets.find(name) for name in inputs}
    if len(roots) > 1 and any(root in fixed for root in roots):
        return  # values of a known range keep it: the concatenation requantizes, with an observer of its own
    known = next((fixed[root] for root in roots if root in fixed), None)
    for name in (*inputs[1:], *node.outputs):
        sets.join(inputs[0], name)
    if known is not None:
        fixed[sets.find(inputs[0])] = known


def fixed_qparams(fixed: tuple[float, int], dtype: QDType) -> QParams:
    """Parameters of an operator with a known range, given for quint8."""
    scale, zero_point = fixed
    if dtype is QDType.QINT8:
        return QParams.per_tensor(scale, zero_point - 128, DType.INT8)
    return QParams.per_tensor(scale, zero_point, DType.UINT8)


def _execution_order(graph: Graph) -> list[str]:
    return [*graph.inputs, *(out for node in graph.nodes for out in node.outputs)]


class _DisjointSets:
    """Union-find over names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def add(self, name: str) -> None:
        self._parent.setdefault(name, name)

    def find(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        self._parent[self.find(b)] = self.find(a)

    def members(self, order: Iterable[str]) -> list[tuple[str, ...]]:
        """The sets, each with its names in the given order, by first name."""
        found: dict[str, list[str]] = {}
        for name in order:
            if name in self._parent:
                found.setdefault(self.find(name), []).append(name)
        return [tuple(names) for names in found.values()]
