"""Losses and their derivatives by the outputs: computed in float64, the derivatives rounded to float32 once.

Each gives ``(loss, grad)``: a mean over the batch, and an array of the outputs' shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.errors import DataError
from qtool.ir import Array
from qtool.quantize.data import UNSCORED
from qtool.recipe.training import Distance, Loss, LossConfig

Result = tuple[float, Array]
Float64 = NDArray[np.float64]


def loss_of(config: LossConfig, outputs: Array, labels: Array | None, teacher: Array | None) -> Result:
    """The recipe's loss; ``labels`` are those of the batch, ``teacher`` the float model's outputs for it.

    DataError where labels are missing or of another kind than the loss takes.
    """
    if config.name is Loss.DISTILLATION:
        if teacher is None:
            raise ValueError("distillation needs the outputs of the float model")
        if config.distance is Distance.MSE:
            return mse(outputs, teacher)
        return distillation(outputs, teacher, config.temperature)
    if labels is None:
        raise DataError(f"the loss {config.name.value} needs labels, and the training data have none")
    return mse(outputs, labels) if config.name is Loss.MSE else cross_entropy(outputs, labels, config.label_smoothing)


def cross_entropy(outputs: Array, labels: Array, smoothing: float = 0.0) -> Result:
    """``torch.nn.functional.cross_entropy`` of logits (..., C) and int64 classes (...); those that are -100 are left
    out of loss and mean. A batch in which all are gives 0, where PyTorch gives NaN.

    DataError for labels of another type, shape or range.
    """
    if labels.dtype.kind not in "iu" or labels.shape != outputs.shape[:-1]:
        raise DataError(
            f"cross_entropy: got labels of {_kind(labels)}; "
            f"expected class numbers of shape {outputs.shape[:-1]} for outputs of shape {outputs.shape}"
        )
    classes = outputs.shape[-1]
    flat = labels.reshape(-1)
    scored = flat != UNSCORED
    wrong = scored & ((flat < 0) | (flat >= classes))
    if wrong.any():
        raise DataError(f"cross_entropy: got label {flat[wrong][0]}; expected 0..{classes - 1}, or {UNSCORED}")
    grad = np.zeros((flat.size, classes), np.float32)
    count = int(scored.sum())
    if not count:
        return 0.0, grad.reshape(outputs.shape)
    logs = _log_softmax(outputs.reshape(-1, classes)[scored])
    target = np.full(logs.shape, smoothing / classes)
    target[np.arange(count), flat[scored]] += 1 - smoothing
    grad[scored] = (np.exp(logs) - target) / count
    return float(-np.sum(target * logs) / count), grad.reshape(outputs.shape)


def mse(outputs: Array, targets: Array) -> Result:
    """``torch.nn.functional.mse_loss``: the mean over all elements. DataError for targets that are not such floats."""
    if targets.dtype.kind != "f" or targets.shape != outputs.shape:
        raise DataError(f"mse: got targets of {_kind(targets)}; expected floats of shape {outputs.shape}")
    difference = outputs.astype(np.float64) - targets
    count = max(1, difference.size)
    loss = float(np.sum(np.square(difference)) / count)
    return loss, (difference * (2 / count)).astype(np.float32)


def distillation(outputs: Array, teacher: Array, temperature: float = 1.0) -> Result:
    """T² KL(softmax(teacher / T) || softmax(outputs / T)), mean over the rows of classes (https://arxiv.org/abs/1503.02531).

    For logits (N, C) it is PyTorch's ``kl_div`` with ``batchmean``; further axes count as rows.
    """
    if teacher.shape != outputs.shape:
        raise ValueError(f"the float model's outputs have shape {teacher.shape}, expected {outputs.shape}")
    classes = outputs.shape[-1]
    ours, theirs = (_log_softmax(each.reshape(-1, classes) / np.float64(temperature)) for each in (outputs, teacher))
    share, rows = np.exp(theirs), max(1, len(ours))
    loss = float(np.sum(share * (theirs - ours)) / rows) * temperature**2
    grad = (np.exp(ours) - share) * (temperature / rows)
    return loss, grad.astype(np.float32).reshape(outputs.shape)


def _log_softmax(logits: NDArray[Any]) -> Float64:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    logs: Float64 = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return logs


def _kind(array: Array) -> str:
    return f"{array.dtype.name} of shape {array.shape}"
