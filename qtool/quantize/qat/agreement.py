"""Whether the converted model gives what the model in training gave: both run on the same data and are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from qtool.ir import Array
from qtool.quantize.qat.layers import Phase
from qtool.quantize.qat.model import QatModel

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Agreement:
    """Of ``samples``: the share of output numbers that are the same, and of rows whose largest number is in the same
    place. ``exact`` says that the model in training computed with integers."""

    samples: int
    outputs: float
    top1: float
    exact: bool


def agreement(
    model: QatModel,
    converted: Run,
    batches: Iterable[Mapping[str, Array]],
    *,
    exact: bool,
    progress: Callable[[int], None] | None = None,
) -> Agreement:
    """Runs the trained model, as it is when training ends, and the converted one on the same batches."""
    phase = Phase(training=False, freeze_bn=True, observe=False, fake_quant=True, exact=exact)
    samples, same, numbers, same_top, rows = 0, 0, 0, 0, 0
    for feeds in batches:
        trained, made = model.forward(feeds, phase), converted(feeds)
        for name, ours in trained.items():
            theirs = made[name]
            same += int(np.count_nonzero(ours == theirs))
            numbers += ours.size
            if ours.ndim and ours.shape[-1]:
                top = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
                same_top, rows = same_top + int(np.count_nonzero(top)), rows + top.size
        samples += len(next(iter(feeds.values())))
        if progress is not None:
            progress(samples)
    return Agreement(samples, same / max(numbers, 1), same_top / max(rows, 1), exact)
