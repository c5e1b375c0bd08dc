"""The keys of a recipe: one table that the loader checks by, and that the JSON schema is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from qtool.recipe.document_data import DATA
from qtool.recipe.document_train import HEAD, TRAIN
from qtool.recipe.items import Item
from qtool.recipe.kinds import Choice, Either, FilePath, Flag, Key, ListOf, Real, Table, Text, Whole, one_of
from qtool.recipe.observers import EPS, OBSERVERS, QUANT_LIMIT
from qtool.recipe.presets import PRESETS
from qtool.recipe.schema import ZOO, ZOO_NAMES, Backend, Mode, QDType, Scheme, ZooModel

METRICS = (
    *("top1", "top5", "mse", "psnr", "cosine", "sqnr", "max_error"),
    *("perplexity", "bits_per_character", "bits_per_word"),
)
OWN_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*")
LAYER_MODES = (Mode.STATIC.value, Mode.DYNAMIC.value)
"""The modes that a rule may ask for; training is for whole models."""


def _options() -> dict[str, Key]:
    """Every observer's own options, each with the observers that take it."""
    takers: dict[str, list[str]] = {}
    kinds: dict[str, Whole | Real | Flag] = {}
    for name, info in OBSERVERS.items():
        for option, kind in info.options.items():
            kinds[option] = kind
            takers.setdefault(option, []).append(name)
    return {option: Key(kind, f"for the observer {' or '.join(takers[option])}") for option, kind in kinds.items()}


@dataclass(frozen=True)
class MetricName:
    """One of the metrics, or a function of the user's as ``module:function``."""

    words: tuple[str, ...]

    def read(self, item: Item, name: str) -> Any:
        if isinstance(item.value, str) and OWN_METRIC.fullmatch(item.value):
            return item.value
        return Choice(self.words).read(item, name)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(self.words)}, {"type": "string", "pattern": f"^{OWN_METRIC.pattern}$"}]}


_ZOO = Table(
    MappingProxyType(
        {
            "zoo": Key(Choice(ZOO_NAMES), "an architecture of the zoo", required=True),
            "weights": Key(FilePath(), "a PyTorch state dict (random weights)"),
        }
    )
)


@dataclass(frozen=True)
class ModelKind:
    """A file, ``zoo:NAME``, or ``{zoo: NAME, weights: FILE}``."""

    def read(self, item: Item, name: str) -> Any:
        if isinstance(item.value, Mapping):
            found = _ZOO.read(item, name)
            return ZooModel(found["zoo"], found.get("weights"))
        if isinstance(item.value, str) and item.value.startswith(ZOO):
            return ZooModel(Choice(ZOO_NAMES).read(replace(item, value=item.value.removeprefix(ZOO)), name))
        return FilePath().read(item, name)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [FilePath().schema(), _ZOO.schema()]}


OBSERVER = Table(
    MappingProxyType(
        {
            "observer": Key(Choice(tuple(OBSERVERS)), "how the range is found"),
            "dtype": Key(one_of(QDType), "storage type: quint8 or qint8"),
            "scheme": Key(
                one_of(Scheme), "one scale for the tensor or one a channel; symmetric has zero in the middle"
            ),
            "reduce_range": Key(Flag(), "use 7 of the 8 bits, for instruction sets that would overflow"),
            "quant_min": Key(QUANT_LIMIT, "smallest integer the range is spread over"),
            "quant_max": Key(QUANT_LIMIT, "largest integer the range is spread over"),
            "eps": Key(EPS, "smallest scale"),
            **_options(),
        }
    )
)

PRESET = Choice(tuple(PRESETS))

QCONFIG = Table(
    MappingProxyType(
        {
            "preset": Key(PRESET, "what is not given here is as in this preset (else as the backend's default)"),
            "activation": Key(OBSERVER, "the observer of a layer's output; parts left out are filled in"),
            "weight": Key(OBSERVER, "the observer of a layer's weight; parts left out are filled in"),
            "transposed_weight": Key(OBSERVER, "the same for transposed convolutions, where it is another (as weight)"),
            "single_rounding": Key(Flag(), "add residuals before the one rounding (more accurate, not PyTorch's bits)"),
            "bias_correction": Key(Flag(), "take the mean error of rounded weights off the biases (not PyTorch's)"),
            "embedding_bits": Key(Whole(4, 8), "8 or 4 bits for tables of embeddings, in mode dynamic (null: float)"),
            "mode": Key(Choice(LAYER_MODES), "how these layers are quantized, whatever the recipe's mode; null: float"),
        }
    )
)


@dataclass(frozen=True)
class QConfigDict:
    """Rules by key; they are read later, when mode and backend are known."""

    def read(self, item: Item, name: str) -> Any:
        if not isinstance(item.value, Mapping) or not item.value:
            item.refuse(name, 'a mapping such as {"": fbgemm, layer1.0.conv1: null}')
        return item

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [{"type": "null"}, PRESET.schema(), QCONFIG.schema()]},
        }


CALIBRATION = Table(MappingProxyType(DATA))

_MEASURED = {
    "metric": Key(MetricName(METRICS), "what is measured (top1), or module:function"),
    "outputs": Key(ListOf(Text("the name of an output")), "the outputs to measure (all that are not carried)"),
    "residual": Key(Flag(), "the model gives what is to be taken off its input, as noise: input - output is judged"),
}

_MEASURED_DATA = Table(MappingProxyType({**DATA, **_MEASURED}))

RECIPE = Table(
    MappingProxyType(
        {
            "model": Key(
                ModelKind(), "the float model: .npz, .onnx, zoo:NAME, {zoo: NAME, weights: FILE}", required=True
            ),
            "output": Key(FilePath(), "where the quantized model is written", required=True),
            "mode": Key(
                one_of(Mode),
                "static (calibrated), dynamic (at run time), qat (static, trained), or float (trained, not quantized)",
            ),
            "backend": Key(one_of(Backend), "default qconfigs and int8 arithmetic (fbgemm)"),
            "debug": Key(Flag(), "write float weights and explicit quantize/dequantize operators"),
            "qconfig_dict": Key(QConfigDict(), 'layer -> qconfig; "" < type:OP < re:REGEX < longest module path'),
            "fuse": Key(
                Either(Choice(("auto", "none")), ListOf(ListOf(Text("the name of a module")))),
                "auto, none, or lists of modules to fuse: [[conv1, bn1, relu]]",
            ),
            "equalize": Key(
                Flag(),
                "rescale channels between layers first, so that one weight scale fits them all (modes static and qat)",
            ),
            "stubs": Key(
                Either(
                    Choice(("auto",)),
                    Table(
                        MappingProxyType(
                            {
                                "quant": Key(
                                    ListOf(Text("the name of a value or module")),
                                    "where quantization begins",
                                    required=True,
                                ),
                                "dequant": Key(
                                    ListOf(Text("the name of a value or module")), "where it ends", required=True
                                ),
                            }
                        )
                    ),
                ),
                "auto, or where quantization begins and ends: {quant: [...], dequant: [...]}",
            ),
            "train": Key(TRAIN, "training, for the modes qat and float"),
            "head": Key(HEAD, "a new last layer: transfer learning, for the modes qat and float"),
            "calibration": Key(CALIBRATION, "data to observe; in mode qat before the first step, where it is given"),
            "validation": Key(_MEASURED_DATA, "data to choose the best epoch of training by (its loss)"),
            "evaluation": Key(_MEASURED_DATA, "data to measure the accuracy on"),
            "latency": Key(
                Table(
                    MappingProxyType(
                        {
                            "threads": Key(Whole(1, 1024), "threads (1)"),
                            "batch": Key(Whole(1, 1 << 20), "samples an inference (1)"),
                            "warmup": Key(Whole(0, 1 << 20), "runs that are not counted (5)"),
                            "seconds": Key(Real(0.0, 3600.0, above=True), "time spent on each model (1.0)"),
                        }
                    )
                ),
                "how the speed is measured",
            ),
            "gates": Key(
                Table(
                    MappingProxyType(
                        {
                            "max_accuracy_drop": Key(Real(0.0, 1e6), "in the metric's unit"),
                            "min_size_ratio": Key(Real(0.0, 1e6), "float bytes / quantized bytes"),
                            "min_speedup": Key(Real(0.0, 1e6), "float time / quantized time"),
                            "min_metric": Key(Real(-1e6, 1e6), "of the quantized model's metric, where more is better"),
                            "max_metric": Key(Real(-1e6, 1e6), "of the quantized model's metric, where less is better"),
                        }
                    )
                ),
                "limits; qtool exits with 3 when one is missed",
            ),
            "report": Key(
                Table(MappingProxyType({"json": Key(FilePath(), "where the JSON report is written")})),
                "reports to write",
            ),
        }
    )
)
