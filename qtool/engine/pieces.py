"""Which operators of a large batch run once for each piece of it, so that what they hand on stays in a cache.

Run over the whole batch, an operator whose activations are larger than the caches reads from memory what the one before
has just written there. Run piece by piece it reads its weights again instead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from qtool.engine.lowering import Group, Source
from qtool.engine.lowering.pointwise import FORMULAS
from qtool.engine.shapes import Sizes
from qtool.ir import Node
from qtool.ops import attrs_of

FAR_BYTES = 4 << 20
"""What an operator reads and writes of activations is partly out of the caches from about here on."""
NEAR_BYTES = 1 << 20
"""A piece is to be as large as it can be with no more than this, but one picture at least."""

WITH_CONSTANTS = frozenset(
    (
        *("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "batch_norm", "prelu", "quantize", "dequantize"),
        *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
        *("adaptive_max_pool1d", "adaptive_max_pool2d", "identity", "dropout", "depth_to_space", "space_to_depth"),
        *FORMULAS,
    )
)
"""Operators that make a picture of each picture of their first input, of a residual, and of constants."""
ELEMENTWISE = frozenset(("add", "sub", "mul", "div", "cat"))
"""The same of all inputs, constants of one picture or less among them."""


@dataclass(frozen=True)
class Cut:
    """The first ``groups`` groups run ``pieces`` times; ``source`` has the shapes of a piece."""

    source: Source
    groups: int = 0
    pieces: int = 1


def find_cut(source: Source, groups: Sequence[Group], outputs: Collection[str]) -> Cut:
    """The cut behind the last group that gains from it, and then where the least has to be handed on."""
    batch = _batch(source, groups)
    able = 0
    while able < len(groups) and all(_is_by_picture(source, node, batch) for node in groups[able].nodes):
        able += 1
    sizes = [_bytes(source, _activations(source, group)) for group in groups[:able]]
    pieces = _pieces(batch, max(sizes, default=0))
    gaining = [at for at, size in enumerate(sizes) if gains(size, pieces * _weight_bytes(source, groups[at]))]
    if pieces < 2 or not gaining:
        return Cut(source)
    end = gaining[-1] + 1
    while end < able and _handed_on(source, groups, end + 1, outputs) < _handed_on(source, groups, end, outputs):
        end += 1
    return Cut(replace(source, shapes=_of_a_piece(source, groups[:end], batch // pieces)), end, pieces)


def gains(activation_bytes: int, weight_bytes: int) -> bool:
    """Whether reading weights once for each piece costs less than activations that lie far away."""
    return activation_bytes > max(FAR_BYTES, weight_bytes)


def _batch(source: Source, groups: Sequence[Group]) -> int:
    """The first size of the first group's result; 1 where it has none."""
    return source.shapes[groups[0].output][0] if groups and source.shapes[groups[0].output] else 1


def _is_by_picture(source: Source, node: Node, batch: int) -> bool:
    names = [name for name in node.inputs if name]
    computed = {name for name in names if name not in source.constants}
    shapes = [source.shapes[name] for name in (*computed, *node.outputs)]
    if len({len(shape) for shape in shapes}) != 1 or any(not shape or shape[0] != batch for shape in shapes):
        return False
    if node.op in WITH_CONSTANTS:
        return computed <= {names[0], *node.inputs[3:]}  # a residual
    rank = len(shapes[0])
    constants = (source.shapes[name] for name in names if name in source.constants)
    single = all(len(shape) < rank or shape[0] == 1 for shape in constants)
    return node.op in ELEMENTWISE and single and (node.op != "cat" or attrs_of(node).dim % rank != 0)


def _activations(source: Source, group: Group) -> set[str]:
    """What a group reads and writes of the batch, but for what stays inside of it."""
    return group.reads - group.makes - source.constants.keys() | {group.output}


def _weight_bytes(source: Source, group: Group) -> int:
    return _bytes(source, group.reads & source.constants.keys())


def _bytes(source: Source, names: Collection[str]) -> int:
    return sum(math.prod(source.shapes[name]) * source.value(name).dtype.numpy.itemsize for name in names)


def _pieces(batch: int, most_bytes: int) -> int:
    """How many equal pieces a batch is cut into."""
    least = -(-most_bytes // NEAR_BYTES)
    return next((pieces for pieces in range(1, batch) if batch % pieces == 0 and pieces >= least), batch)


def _handed_on(source: Source, groups: Sequence[Group], end: int, outputs: Collection[str]) -> int:
    """Bytes of what the groups before ``end`` make and others read."""
    made = set[str]().union(*(group.makes for group in groups[:end]))
    return _bytes(source, made & (read_by(groups[end:]) | set(outputs)))


def read_by(groups: Sequence[Group]) -> set[str]:
    """The values that groups read."""
    return set[str]().union(*(group.reads for group in groups))


def _of_a_piece(source: Source, groups: Sequence[Group], size: int) -> Mapping[str, Sizes]:
    names = read_by(groups).union(*(group.makes for group in groups)) - source.constants.keys()
    return {name: (size, *shape[1:]) if name in names else shape for name, shape in source.shapes.items()}
