"""Known architectures as graph builders; those for images have the module names and keys of torchvision or authors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array, Graph
from qtool.zoo import weights as fill
from qtool.zoo.blocks import Net, transform_input
from qtool.zoo.dncnn import dncnn
from qtool.zoo.googlenet import googlenet
from qtool.zoo.inception_v3 import inception_v3
from qtool.zoo.mobilenet_v2 import mobilenet_v2
from qtool.zoo.resnet import resnet18, resnet50
from qtool.zoo.resnet_cifar import resnet20
from qtool.zoo.sequence import bert_base_layers, lstm_lm


@dataclass(frozen=True)
class Architecture:
    """One entry of the zoo.

    ``image`` is the side of the input, None for any size. ``classes`` is their default number, 0 for what is no
    classifier. ``fc`` is the module path of the classifier, ``training_only`` what the keys of heads begin with that
    torchvision's state dict has and inference does not need; ``transforms`` says that torchvision's pretrained model
    changes the normalization of its input.
    """

    build: Callable[[Net, int], Graph]
    summary: str
    image: int | None = 224
    channels: int = 3
    classes: int = 1000
    fc: str = "fc"
    training_only: tuple[str, ...] = ()
    transforms: bool = False


ZOO: Mapping[str, Architecture] = {
    "resnet18": Architecture(resnet18, "residual net of 18 layers"),
    "resnet50": Architecture(resnet50, "residual net of 50 layers with bottlenecks"),
    "mobilenet_v2": Architecture(mobilenet_v2, "inverted residuals, depthwise, relu6", fc="classifier.1"),
    "googlenet": Architecture(
        googlenet, "inception modules with batch norm", training_only=("aux1.", "aux2."), transforms=True
    ),
    "inception_v3": Architecture(
        inception_v3, "factorized inception modules", image=299, training_only=("AuxLogits.",), transforms=True
    ),
    "resnet20": Architecture(resnet20, "residual net of 20 layers for CIFAR", image=32, classes=10, fc="linear"),
    "dncnn": Architecture(dncnn, "denoiser of 17 layers, gives the noise", image=None, channels=1, classes=0),
}


@dataclass(frozen=True)
class SequenceModel:
    """A model of sequences, made for measuring: random weights only, quantized at run time unless told otherwise."""

    build: Callable[[int], Graph]
    summary: str
    input: str


SEQUENCES: Mapping[str, SequenceModel] = {
    "bert_base_layers": SequenceModel(bert_base_layers, "encoder layers of BERT-base, random weights", "128 x 768"),
    "lstm_lm": SequenceModel(lstm_lm, "LSTM word language model, random weights", "35 words"),
}


def names() -> tuple[str, ...]:
    """The image classifiers that ``build`` knows."""
    return tuple(ZOO)


def sequence_names() -> tuple[str, ...]:
    """The models of sequences that ``build`` knows."""
    return tuple(SEQUENCES)


def build(
    name: str,
    weights: Mapping[str, Array] | None = None,
    seed: int = 0,
    classes: int | None = None,
    *,
    image: int | None = None,
    transform: bool = False,
) -> Graph:
    """A model of the zoo; its ``meta`` names the mode that it is usually quantized in, where that is not static.

    An image classifier: input ``x`` (N, 3, image, image) in float32, output the logits (N, classes); or a denoiser.

    ``weights`` is a state dict by torchvision's keys; without it, weights are random, decided by ``seed`` alone.
    ``classes`` is by default as many as the weights have, 1000 (resnet20: 10) without them. ``image`` is the side of
    the input, by default the architecture's own (224, inception_v3 299, resnet20 32, dncnn any height and width).
    ``transform`` puts torchvision's ``transform_input`` before googlenet and inception_v3, as their pretrained weights
    want it.

    A model of sequences, see ``sequence.py``, has nothing but its seed to choose.

    Raises ModelError for an unknown name, for choices that a model does not have, for keys that are
    missing, unexpected or of the wrong shape, and for an image too small for the architecture.
    """
    if name in SEQUENCES:
        _refuse_choices(name, weights=weights, classes=classes, image=image, transform=transform or None)
        graph = SEQUENCES[name].build(seed)
        return replace(graph, meta={"source": f"zoo:{name}", "seed": seed, "mode": "dynamic"})
    architecture = _find(name)
    if transform and not architecture.transforms:
        raise ModelError(f"{name} has no input transform; only googlenet and inception_v3 have one")
    net = Net(name, architecture.image if image is None else image, architecture.channels)
    if transform:
        net.x = transform_input(net, net.x)
    graph = architecture.build(net, _class_count(architecture, weights, classes))
    if weights is None:
        return replace(fill.random(graph, seed), meta={"source": f"zoo:{name}", "seed": seed})
    return replace(fill.from_state(graph, weights, architecture.training_only), meta={"source": f"zoo:{name}"})


def _refuse_choices(name: str, **choices: object) -> None:
    given = [choice for choice, value in choices.items() if value is not None]
    if given:
        raise ModelError(f"{name} has random weights and one size; got {', '.join(given)}, expected only a seed")


def _find(name: str) -> Architecture:
    if name in ZOO:
        return ZOO[name]
    near = difflib.get_close_matches(name, (*ZOO, *SEQUENCES), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ModelError(f"the zoo has no {name!r}; expected one of {', '.join((*ZOO, *SEQUENCES))}{hint}")


def _class_count(architecture: Architecture, weights: Mapping[str, Array] | None, classes: int | None) -> int:
    if classes is not None:
        if not architecture.classes:
            raise ModelError(f"got {classes} classes, and this architecture is no classifier")
        if classes < 1:
            raise ModelError(f"got {classes} classes, expected at least 1")
        return classes
    bias = None if weights is None else weights.get(f"{architecture.fc}.bias")
    return architecture.classes if bias is None or np.ndim(bias) != 1 or not len(bias) else len(bias)
