"""Results that are written where they are wanted: a convolution that is only read to be copied into a concatenation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from qtool.engine.lowering import Segment, Step
from qtool.native import Kind, abi


def write_in_place(segment: Segment) -> None:
    """Drops the copies of convolutions' results that stand side by side with others in the channels of a larger one.

    The convolution writes its pixels there itself, the larger result's ``out_pitch`` bytes apart. Kept are copies with
    a table, of results that have other readers or belong to the caller, and of convolutions that add a residual, which
    lies as the result does.
    """
    readers = Counter(buffer for step in segment.steps for buffer in set(step.inputs))
    writers = Counter(step.output for step in segment.steps)
    made = {step.output: index for index, step in enumerate(segment.steps) if writers[step.output] == 1}
    steps: list[Step | None] = list(segment.steps)
    for index, copy in enumerate(segment.steps):
        source = made.get(copy.inputs[0]) if copy.inputs else None
        if source is None or readers[copy.inputs[0]] != 1 or copy.inputs[0] in segment.bindings:
            continue
        placed = _placed(segment.steps[source], copy)
        if placed is not None:
            steps[source], steps[index] = placed, None
    segment.steps[:] = [step for step in steps if step is not None]


def _placed(step: Step, copy: Step) -> Step | None:
    """The convolution that writes what ``copy`` would; None where it is no such convolution, or no such copy."""
    conv, moved = step.args, copy.args
    if not isinstance(conv, abi.ConvArgs) or not isinstance(moved, abi.CopyArgs) or step.kind is not Kind.QCONV:
        return None
    pixels = conv.batch * conv.out_height * conv.out_width
    same = (moved.rows, moved.row_bytes, moved.in_stride) == (pixels, conv.out_channels, conv.out_channels)
    if not same or step.pieces != copy.pieces or moved.in_offset or moved.lut or conv.residual:
        return None
    args = abi.copied(conv, out_pitch=moved.out_stride, out_offset=moved.out_offset)
    return replace(step, output=copy.output, args=args)
