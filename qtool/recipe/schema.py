"""A recipe as frozen types: what the YAML says once names are resolved. No strings of the file are left unparsed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qtool.recipe.training import Augment, FakeQuant, Head, LossConfig, OptimizerConfig, Pattern, ScheduleConfig


class Mode(enum.Enum):
    STATIC = "static"
    DYNAMIC = "dynamic"
    QAT = "qat"
    FLOAT = "float"
    """Trained, and not quantized."""

    @property
    def trains(self) -> bool:
        return self in (Mode.QAT, Mode.FLOAT)


class Backend(enum.Enum):
    """Chooses default qconfigs and the int8 arithmetic; the instruction set is chosen elsewhere."""

    FBGEMM = "fbgemm"
    X86 = "x86"
    ONEDNN = "onednn"
    QNNPACK = "qnnpack"


class Scheme(enum.Enum):
    PER_TENSOR_AFFINE = "per_tensor_affine"
    PER_TENSOR_SYMMETRIC = "per_tensor_symmetric"
    PER_CHANNEL_AFFINE = "per_channel_affine"
    PER_CHANNEL_SYMMETRIC = "per_channel_symmetric"

    @property
    def per_channel(self) -> bool:
        return self in (Scheme.PER_CHANNEL_AFFINE, Scheme.PER_CHANNEL_SYMMETRIC)

    @property
    def symmetric(self) -> bool:
        return self in (Scheme.PER_TENSOR_SYMMETRIC, Scheme.PER_CHANNEL_SYMMETRIC)


class QDType(enum.Enum):
    QUINT8 = "quint8"
    QINT8 = "qint8"


FLOAT32_EPS = 2.0**-23


@dataclass(frozen=True)
class ObserverConfig:
    """One observer: which, and what it may use of the 8 bits (PyTorch's observer arguments, by the same names)."""

    observer: str
    dtype: QDType = QDType.QUINT8
    scheme: Scheme = Scheme.PER_TENSOR_AFFINE
    reduce_range: bool = False
    quant_min: int | None = None
    quant_max: int | None = None
    eps: float = FLOAT32_EPS
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What only this observer takes: averaging_constant, bins, percentile, scale, zero_point, ..."""


@dataclass(frozen=True)
class QConfig:
    """How one layer is quantized: the observer of its output activation and that of its weight."""

    activation: ObserverConfig
    weight: ObserverConfig
    single_rounding: bool = False
    """Residual sums and clamps are done before the layer's one rounding: more accurate than, and so not the bits of,
    PyTorch, which rounds the layer's output first (the preset ``accurate`` sets it)."""
    mode: Mode | None = None
    """STATIC or DYNAMIC for layers that are quantized in another way than the rest; None is the recipe's mode."""
    embedding_bits: int | None = None
    """8 or 4 for the tables of embeddings, each row with a float scale and offset; None leaves them in float. For mode
    dynamic."""
    bias_correction: bool = False
    """The mean error that rounded weights make, measured on the calibration data, is taken off the bias: more accurate
    than, and so not the numbers of, PyTorch (the preset ``accurate`` sets it)."""
    transposed_weight: ObserverConfig | None = None
    """The weight of transposed convolutions where it is another: PyTorch's defaults for ``fbgemm`` and ``x86`` have one
    scale for each of these weights, whose channels lie along another axis than FBGEMM's kernels take them."""


@dataclass(frozen=True)
class Rule:
    """One entry of ``qconfig_dict``: its key as written, and the qconfig (None leaves the layers in float)."""

    key: str
    qconfig: QConfig | None
    where: str = ""
    """File and line, for messages."""


@dataclass(frozen=True)
class Stubs:
    """Eager style: the values (or module paths whose output they are) at which quantization begins and ends."""

    quant: tuple[str, ...]
    dequant: tuple[str, ...]


class Colour(enum.Enum):
    """The channels of a picture, in their order."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"


class Layout(enum.Enum):
    """Whether channels come before or after height and width."""

    NCHW = "nchw"
    NHWC = "nhwc"


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, the clean picture being the target: of deviation ``sigma`` where pixels are 0..255, not clipped.

    Drawn in float64 by NumPy's RandomState, which never changes, from ``seed`` anew for every picture, as the test
    programs of DnCNN's authors do.
    """

    sigma: float
    seed: int = 0


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an input: resized, the centre cropped, spread over ``range``, then (x - mean) / std.

    ``mean`` and ``std`` are in the unit of ``range`` and have one number for all channels, or one a channel in the
    order of ``colour``.
    """

    resize: int | tuple[int, int] | None = None
    """The short side, which keeps the aspect, or (height, width)."""
    crop: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    colour: Colour = Colour.RGB
    range: tuple[float, float] = (0.0, 1.0)
    """What 0 and 255 become."""
    layout: Layout = Layout.NCHW
    noise: Noise | None = None

    @property
    def channels(self) -> int:
        return 1 if self.colour is Colour.GRAY else 3


@dataclass(frozen=True)
class Audio:
    """How sound becomes frames: of ``window`` samples, each ``hop`` behind the last one (``window`` where that is
    None), with ``context`` samples more in front; as they are, or as the magnitudes of their spectrum."""

    rate: int
    window: int
    hop: int | None = None
    context: int = 0
    features: str = "waveform"


@dataclass(frozen=True)
class DataConfig:
    """Where batches come from. ``labels`` and ``preprocess`` are for a folder of images, ``audio`` is for sound.

    ``carry`` maps outputs to the inputs that they become in the next step, ``constants`` maps inputs to their value;
    ``outputs`` names those that are measured, all that are not carried where it is empty.
    """

    data: Path
    split: str = ""
    batch_size: int = 32
    batches: int | None = None
    metric: str = ""
    labels: Path | None = None
    preprocess: Preprocess | None = None
    shuffle: int | None = None
    """The seed of a random order, the same everywhere; None is the order of the data."""
    samples: tuple[int, int | None] | None = None
    """From the first number up to, not including, the second, counted in the order that ``shuffle`` makes."""
    residual: bool = False
    """The model gives what is to be taken off its input, such as noise: input - output is compared with the targets."""
    audio: Audio | None = None
    carry: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    constants: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    outputs: tuple[str, ...] = ()

    def limited(self, batch_size: int, batches: int) -> DataConfig:
        """So many samples of the same data, in batches of that size; of a model with state, in batches of its own."""
        if self.carry:
            return replace(self, batches=-(-batch_size * batches // self.batch_size))
        return replace(self, batch_size=batch_size, batches=batches)


@dataclass(frozen=True)
class TrainConfig:
    """Quantization-aware training. Epochs are counted from 0; None for the two that freeze means never."""

    data: DataConfig
    """Its ``batch_size`` is that of a step; every epoch has an order of its own."""
    epochs: int = 8
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: Augment = field(default_factory=Augment)
    seed: int = 0
    freeze_bn_epoch: int | None = 4
    """From this epoch on batch norms keep their running mean and variance, and normalize with them."""
    freeze_observer_epoch: int | None = 4
    """From this epoch on the ranges of activations and weights stay as they are."""
    layers: tuple[Pattern, ...] = ()
    """What trains; everything where it is empty."""
    fake_quant: FakeQuant = FakeQuant.FLOAT
    learn_scales: bool = False
    """Scales are trained like weights (LSQ, https://arxiv.org/abs/1902.08153)."""
    checkpoint: Path | None = None


@dataclass(frozen=True)
class LatencyConfig:
    threads: int = 1
    batch: int = 1
    warmup: int = 5
    seconds: float = 1.0


@dataclass(frozen=True)
class Gates:
    """Limits that make the command exit with 3 when they are missed."""

    max_accuracy_drop: float | None = None
    min_size_ratio: float | None = None
    min_speedup: float | None = None
    min_metric: float | None = None
    max_metric: float | None = None


ZOO = "zoo:"
ZOO_NAMES = (
    *("resnet18", "resnet50", "mobilenet_v2", "googlenet", "inception_v3", "resnet20", "dncnn"),
    *("bert_base_layers", "lstm_lm"),
)
"""The architectures of the zoo, said again: recipes and options are read without importing what they are about."""


@dataclass(frozen=True)
class ZooModel:
    """An architecture of the zoo with the weights of a PyTorch state dict, or random ones (seed 0)."""

    name: str
    weights: Path | None = None

    def __str__(self) -> str:
        return f"{ZOO}{self.name}" + (f" with {self.weights}" if self.weights else "")


@dataclass(frozen=True)
class Recipe:
    """Everything ``qtool quantize`` needs to know. ``fuse`` is "auto", "none" or the eager style's lists of modules."""

    path: Path | None
    model: Path | ZooModel
    output: Path
    mode: Mode
    backend: Backend
    rules: tuple[Rule, ...]
    debug: bool = False
    fuse: str | tuple[tuple[str, ...], ...] = "auto"
    stubs: Stubs | None = None
    """None places quantize and dequantize automatically."""
    equalize: bool = False
    """Channels are rescaled between layers first, so that one weight scale fits them all (``passes.equalize``)."""
    train: TrainConfig | None = None
    """There if, and only if, the mode trains."""
    head: Head | None = None
    validation: DataConfig | None = None
    """What the best epoch is chosen by; the loss of training where there is none."""
    calibration: DataConfig | None = None
    evaluation: DataConfig | None = None
    latency: LatencyConfig | None = None
    gates: Gates = Gates()
    report_json: Path | None = None
    resolved: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The recipe as plain values with presets expanded, for the file and the report."""

    @property
    def model_file(self) -> Path | None:
        """The file that the model or its weights are read from; None for random weights."""
        return self.model.weights if isinstance(self.model, ZooModel) else self.model
