"""From the operators of a graph to those of the native engine: one function an operator, in files by family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qtool.engine.lowering.accumulate import lower_accumulate, lower_linear_dynamic
from qtool.engine.lowering.binary import lower_binary
from qtool.engine.lowering.border import lower_border
from qtool.engine.lowering.gather import lower_gather
from qtool.engine.lowering.groups import ACCUMULATING, Group, alone, make_groups
from qtool.engine.lowering.layout import Layout
from qtool.engine.lowering.matmul import lower_matmul
from qtool.engine.lowering.move import (
    lower_blocks,
    lower_cat,
    lower_identity,
    lower_permute,
    lower_reshape,
    lower_slice,
    lower_split,
)
from qtool.engine.lowering.norm import lower_batch_norm, lower_layer_norm, lower_softmax
from qtool.engine.lowering.pick import lower_pad, lower_resize
from qtool.engine.lowering.pointwise import FORMULAS, lower_table, lower_unary
from qtool.engine.lowering.pool import lower_adaptive_pool, lower_mean, lower_pool
from qtool.engine.lowering.recurrent import GATES, lower_recurrent
from qtool.engine.lowering.segment import Binding, Role, Segment, Source, Step, Unsupported
from qtool.engine.lowering.transposed import lower_conv_transpose
from qtool.ir import Node

__all__ = [
    "Binding",
    "Group",
    "Layout",
    "Role",
    "Segment",
    "Source",
    "Step",
    "Unsupported",
    "alone",
    "layout_wanted",
    "lower",
    "make_groups",
    "why_unsupported",
]

Lower = Callable[[Segment, Group], None]

LOWERINGS: Mapping[str, Lower] = {
    "conv1d": lower_accumulate,
    "conv2d": lower_accumulate,
    "linear": lower_accumulate,
    "conv_transpose1d": lower_conv_transpose,
    "conv_transpose2d": lower_conv_transpose,
    "linear_dynamic": lower_linear_dynamic,
    "matmul": lower_matmul,
    "add": lower_binary,
    "sub": lower_binary,
    "mul": lower_binary,
    "div": lower_binary,
    **dict.fromkeys(FORMULAS, lower_unary),
    "prelu": lower_unary,
    "quantize": lower_border,
    "dequantize": lower_border,
    "max_pool1d": lower_pool,
    "max_pool2d": lower_pool,
    "avg_pool1d": lower_pool,
    "avg_pool2d": lower_pool,
    "adaptive_avg_pool1d": lower_adaptive_pool,
    "adaptive_avg_pool2d": lower_adaptive_pool,
    "adaptive_max_pool1d": lower_adaptive_pool,
    "adaptive_max_pool2d": lower_adaptive_pool,
    "mean": lower_mean,
    "batch_norm": lower_batch_norm,
    "layer_norm": lower_layer_norm,
    "softmax": lower_softmax,
    "identity": lower_identity,
    "dropout": lower_identity,
    "flatten": lower_reshape,
    "reshape": lower_reshape,
    "squeeze": lower_reshape,
    "unsqueeze": lower_reshape,
    "permute": lower_permute,
    "transpose": lower_permute,
    "cat": lower_cat,
    "slice": lower_slice,
    "pad": lower_pad,
    "split": lower_split,
    "embedding": lower_gather,
    "gather": lower_gather,
    "resize": lower_resize,
    "depth_to_space": lower_blocks,
    "space_to_depth": lower_blocks,
    **{f"{name}{suffix}": lower_recurrent for name in GATES for suffix in ("", "_dynamic")},
}

CHANNELS_LAST = frozenset(
    name
    for name in LOWERINGS
    if name.startswith("conv") or "_pool" in name or name in ("batch_norm", "mean", "depth_to_space", "space_to_depth")
)
"""Operators that read and write channels-last."""

ANY_LAYOUT = frozenset(
    (
        *FORMULAS,
        "prelu",
        "add",
        "sub",
        "mul",
        "div",
        "quantize",
        "dequantize",
        "identity",
        "dropout",
        "cat",
        "slice",
        "pad",
        "split",
        "resize",
    )
)
"""Operators that take what is there: their input is wanted as their output is."""


def lower(segment: Segment, group: Group) -> None:
    """Adds a group to a segment; Unsupported where the native engine has no way to run it as it stands."""
    node = group.host
    segment.node = group.name
    if group.lut is not None and node.op not in ACCUMULATING:
        return lower_table(segment, group)
    return LOWERINGS[node.op](segment, group)


def why_unsupported(source: Source, node: Node) -> str:
    """Why a node cannot run in native code; "" where it can."""
    if node.op not in LOWERINGS:
        return f"there is no native {node.op}"
    try:
        lower(Segment(source), alone(source, node))
    except Unsupported as reason:
        return str(reason)
    return ""


def layout_wanted(node: Node, output: Layout) -> Layout:
    """The layout in which a native node wants its inputs when its output is wanted in ``output``."""
    if node.op in CHANNELS_LAST:
        return Layout.LAST
    return output if node.op in ANY_LAYOUT else Layout.PLAIN
