"""Models as they are named on the command line and in recipes."""

from __future__ import annotations

import os
from pathlib import Path

from qtool import zoo
from qtool.errors import ModelError
from qtool.frontends.onnx import import_onnx
from qtool.frontends.pth import read_state_dict
from qtool.frontends.torch import load_pt2
from qtool.ir import Graph
from qtool.ir.npz import load
from qtool.ops.check import check_types
from qtool.passes import simplify
from qtool.recipe.schema import ZOO, ZooModel


def load_model(spec: str | os.PathLike[str] | ZooModel, weights: Path | None = None) -> Graph:
    """The graph of a file, or of ``zoo:NAME`` with the state dict ``weights``, else random ones of seed 0.

    ModelError for anything else.
    """
    if isinstance(spec, ZooModel):
        state = None if spec.weights is None else read_state_dict(spec.weights)
        return zoo.build(spec.name, state)
    text = os.fspath(spec)
    if text.startswith(ZOO):
        return load_model(ZooModel(text[len(ZOO) :], weights))
    if weights is not None:
        raise ModelError(f"{text}: {weights} is for a model of the zoo, such as zoo:resnet18")
    if text.endswith(".onnx"):
        return simplify(import_onnx(text))
    if text.endswith(".pt2"):
        return simplify(load_pt2(text))
    graph = load(text)
    try:
        check_types(graph)
    except ModelError as error:
        raise ModelError(f"{text}: {error}") from error
    return graph
