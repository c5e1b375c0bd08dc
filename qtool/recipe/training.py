"""How a model is trained (``mode: qat``), as frozen types: what the ``train`` and ``head`` blocks of a recipe say."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Optimizer(enum.Enum):
    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class Schedule(enum.Enum):
    CONSTANT = "constant"
    STEP = "step"
    COSINE = "cosine"


class Loss(enum.Enum):
    CROSS_ENTROPY = "cross_entropy"
    MSE = "mse"
    DISTILLATION = "distillation"


class Distance(enum.Enum):
    """How far a student's outputs are from its teacher's: KL divergence for logits, squared error for anything."""

    KL = "kl"
    MSE = "mse"


class FakeQuant(enum.Enum):
    """Whether layers compute in float32 on rounded numbers, as PyTorch's do, or give the int8 arithmetic's bits."""

    FLOAT = "float"
    EXACT = "exact"


@dataclass(frozen=True)
class OptimizerConfig:
    """PyTorch's optimizers, by their arguments. ``rate`` is that before the schedule."""

    name: Optimizer = Optimizer.SGD
    rate: float = 0.01
    momentum: float = 0.9
    """SGD only, as is ``nesterov``."""
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam and AdamW only."""
    eps: float = 1e-8
    weight_decay: float = 1e-4
    """Added to the gradient (SGD, Adam), or taken off the parameter (AdamW)."""
    decay_norms: bool = True
    """Whether parameters with one axis (biases, scales and shifts of batch norms) decay too, as in PyTorch."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The rate in the course of training; ``warmup_epochs`` is the time in which it rises linearly from 0."""

    name: Schedule = Schedule.COSINE
    step_epochs: int = 30
    gamma: float = 0.1
    warmup_epochs: float = 0.0


@dataclass(frozen=True)
class LossConfig:
    """What is made small. ``label_smoothing`` is for cross entropy; ``temperature`` and ``distance`` for distillation,
    whose targets are the outputs of the float model."""

    name: Loss = Loss.CROSS_ENTROPY
    label_smoothing: float = 0.0
    temperature: float = 1.0
    distance: Distance = Distance.KL

    @property
    def needs_labels(self) -> bool:
        return self.name is not Loss.DISTILLATION


@dataclass(frozen=True)
class Augment:
    """Random changes to images, drawn anew for each image and epoch; a zero leaves one out."""

    flip: bool = False
    """Left and right are swapped, in one image of two on average."""
    crop: int = 0
    """Pixels of zeros put around the image before one of its own size is cut out of it."""
    rotate: float = 0.0
    """Degrees, at most, either way."""
    scale: float = 0.0
    """Share, at most, by which it is made larger or smaller."""
    shift: float = 0.0
    """Pixels, at most, along each axis, either way."""

    @property
    def moves(self) -> bool:
        """Whether pixels are interpolated."""
        return bool(self.rotate or self.scale or self.shift)

    @property
    def any(self) -> bool:
        return self.flip or bool(self.crop) or self.moves


@dataclass(frozen=True)
class Pattern:
    """Layers by module path, ``type:OP`` or ``re:REGEX``, as the keys of ``qconfig_dict``."""

    key: str
    where: str = ""
    """File and line, for messages."""


@dataclass(frozen=True)
class Head:
    """The new last layer of transfer learning: so many outputs, in the place of ``layer`` (None: the last one)."""

    classes: int
    layer: str | None = None
    where: str = ""
    """File and line, for messages."""
