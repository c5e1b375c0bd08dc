"""What detectors do with their boxes; defined as ONNX has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, DType, TensorType
from qtool.ops.dims import UNKNOWN, need_float, need_integers, product, same_size, spell
from qtool.ops.registry import Attrs, OpSpec, register, require


@dataclass(frozen=True)
class SuppressionAttrs(Attrs):
    """Boxes are two opposite corners (y, x, y, x), or with ``center_point_box`` 1 (x, y, width, height)."""

    center_point_box: int = 0


def suppression_type(
    attrs: SuppressionAttrs,
    boxes: TensorType,
    scores: TensorType,
    most: TensorType | None = None,
    iou: TensorType | None = None,
    least: TensorType | None = None,
) -> tuple[TensorType, ...]:
    need_float(boxes=boxes, scores=scores)
    need_float(iou_threshold=iou, score_threshold=least)
    need_integers(max_output_boxes_per_class=most)
    require(attrs.center_point_box in (0, 1), f"center_point_box {attrs.center_point_box}", "0 or 1")
    fits = len(boxes.shape) == 3 and same_size(boxes.shape[2], 4)
    require(fits, f"boxes of shape {spell(boxes.shape)}", "(batch, boxes, 4)")
    got = f"scores of shape {spell(scores.shape)}"
    fits = len(scores.shape) == 3 and same_size(scores.shape[0], boxes.shape[0])
    require(fits and same_size(scores.shape[2], boxes.shape[1]), got, "(batch, classes, boxes)")
    for name, tensor in (("max_output_boxes_per_class", most), ("iou_threshold", iou), ("score_threshold", least)):
        require(tensor is None or same_size(product(tensor.shape), 1), f"several {name}", "one")
    return (TensorType(DType.INT64, (UNKNOWN, 3)),)


def non_max_suppression(
    attrs: SuppressionAttrs,
    boxes: Array,
    scores: Array,
    most: Array | None = None,
    iou: Array | None = None,
    least: Array | None = None,
) -> tuple[Array, ...]:
    """(batch, class, box) of the boxes kept: the best first, without those that overlap a better one of their class."""
    limit = 0 if most is None else int(most.reshape(-1)[0])
    overlap = 0.0 if iou is None else float(iou.reshape(-1)[0])
    kept: list[tuple[int, int, int]] = []
    for batch in range(scores.shape[0]):
        corners = _corners(boxes[batch].astype(np.float64), attrs.center_point_box)
        for class_ in range(scores.shape[1]):
            score = scores[batch, class_]
            order = np.argsort(-score, kind="stable")
            if least is not None:
                order = order[score[order] > least.reshape(-1)[0]]
            kept += [(batch, class_, box) for box in _best(corners, order, limit, overlap)]
    return (np.array(kept, np.int64).reshape(-1, 3),)


def _corners(boxes: Array, center_point: int) -> Array:
    """(top, left, bottom, right) a box."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if center_point:
        return np.concatenate([(first - second / 2)[:, ::-1], (first + second / 2)[:, ::-1]], 1)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], 1)


def _best(corners: Array, order: Array, limit: int, overlap: float) -> list[int]:
    kept: list[int] = []
    left = order
    while left.size and len(kept) < limit:
        box = int(left[0])
        kept.append(box)
        left = left[1:][_shared(corners[box], corners[left[1:]]) <= overlap]
    return kept


def _shared(box: Array, others: Array) -> Array:
    """Intersection over union."""
    inner = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = np.maximum(inner, 0).prod(1)
    areas = np.prod(box[2:] - box[:2]) + (others[:, 2:] - others[:, :2]).prod(1) - both
    return np.asarray(np.divide(both, areas, out=np.zeros_like(both), where=areas > 0))


register(
    OpSpec(
        name="non_max_suppression",
        attrs=SuppressionAttrs,
        inputs=("boxes", "scores", "max_output_boxes_per_class?", "iou_threshold?", "score_threshold?"),
        infer=suppression_type,
        reference=non_max_suppression,
        onnx=("NonMaxSuppression",),
        empty=True,
    )
)
