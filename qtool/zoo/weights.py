"""Numbers for a zoo graph: those of a state dict, or random ones with batch-norm statistics that fit them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array, Graph, Node
from qtool.ops.registry import attrs_of, get


def from_state(graph: Graph, state: Mapping[str, Array], ignored: Collection[str]) -> Graph:
    """The graph with the arrays of a state dict, each float32.

    Keys that begin with one of ``ignored`` (training-only heads) and batch-norm counters are passed over. Raises
    ModelError naming the keys that are missing, unexpected or of another shape than the architecture's.
    """
    wanted = parameters(graph)
    given = {
        key: array
        for key, array in state.items()
        if not key.endswith(".num_batches_tracked") and not key.startswith(tuple(ignored))
    }
    _refuse(graph, "lacks", [key for key in wanted if key not in given])
    _refuse(graph, "has unexpected", [key for key in given if key not in wanted])
    for key, placeholder in wanted.items():
        if given[key].shape != placeholder.shape:
            raise ModelError(f"{graph.name}: {key} has shape {given[key].shape}, expected {placeholder.shape}")
        if given[key].dtype.kind != "f":
            raise ModelError(f"{graph.name}: {key} is of type {given[key].dtype}, expected floating point")
    return _with_arrays(graph, {key: given[key].astype(np.float32) for key in wanted})


def parameters(graph: Graph) -> dict[str, Array]:
    """The initializers a state dict has; the constants of an input transform are none of them."""
    return {key: array for key, array in graph.initializers.items() if not key.startswith("transform_input.")}


def _refuse(graph: Graph, what: str, keys: list[str]) -> None:
    if keys:
        shown = ", ".join(key[:100] for key in keys[:3]) + (" ..." if len(keys) > 3 else "")
        raise ModelError(f"{graph.name}: the state dict {what} {len(keys)} of its keys: {shown}")


def _with_arrays(graph: Graph, arrays: Mapping[str, Array]) -> Graph:
    return replace(graph, initializers={**graph.initializers, **arrays})


# Random weights.

SAMPLES = 5
RECTANGLES = 200
SAMPLE_SHARE = 4 / 7
"""Side of the sample images as a share of the architecture's own (128 for 224): a third of the arithmetic."""
ANY_SIZE = 48
"""The side where the architecture takes any."""


def random(graph: Graph, seed: int) -> Graph:
    """The graph with seeded random weights that behave as trained ones do.

    Convolutions are drawn as He et al. (2015, arXiv:1502.01852) have it. The nodes run as they are filled, on a few
    random images, and the running statistics of batch norm are measured there: activations stay of the order of 1 at
    any depth, and logits differ from image to image. (Statistics by formula, channels taken as independent, drift apart
    by factors of thousands over fifty layers.) Every array has a random stream of its own, made of ``seed`` and key.
    """
    if seed < 0:
        raise ModelError(f"got the seed {seed}, expected 0 or more")
    arrays: dict[str, Array] = {}
    values: dict[str, Array] = {graph.inputs[0]: _sample_images(graph, seed)}
    for node in graph.nodes:
        fill = _FILLS.get(node.op)
        if fill:
            arrays.update(fill(graph, node, values[node.inputs[0]], seed))
        operands = [
            values[name] if name in values else arrays.get(name, graph.initializers.get(name)) for name in node.inputs
        ]
        (values[node.outputs[0]],) = get(node.op).reference(attrs_of(node), *operands)
        for name in _read_last_by(graph, node):
            values.pop(name, None)
    return _with_arrays(graph, arrays)


def _read_last_by(graph: Graph, node: Node) -> list[str]:
    return [name for name in node.inputs if graph.consumers[name][-1] is node]


def _sample_images(graph: Graph, seed: int) -> Array:
    """White noise and pictures of rectangles, whose edges, flat parts and colours are much as a photograph's."""
    _, channels, image, _ = (int(n) if isinstance(n, int) else 0 for n in graph.values[graph.inputs[0]].shape)
    image = image or ANY_SIZE
    side = max(round(min(image, 299) * SAMPLE_SHARE), min(image, 96))
    drawn = stream(seed, "images")
    images = drawn.standard_normal((SAMPLES, channels, side, side))
    pictures = [_rectangles(drawn, channels, side) for _ in range(SAMPLES - 1)]
    images[1:] = 0.1 * images[1:] + pictures
    return images.astype(np.float32)


def _rectangles(drawn: np.random.Generator, channels: int, side: int) -> Array:
    """The dead leaves model: sizes follow a power law, later ones cover earlier ones; colours are mostly grey."""
    picture = np.zeros((channels, side, side))
    for _ in range(RECTANGLES):
        height, width = np.minimum(drawn.pareto(1.0, 2) * 0.05 * side + 1, side).astype(int)
        top, left = drawn.integers(0, side, 2)
        colour = drawn.normal(0.0, 1.0) + drawn.normal(0.0, 0.3, (channels, 1, 1))
        picture[:, top : top + height, left : left + width] = colour
    return picture


def stream(seed: int, key: str) -> np.random.Generator:
    """The random stream of one array."""
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


def _normal(graph: Graph, key: str, seed: int, deviation: float) -> Array:
    drawn = stream(seed, key).standard_normal(graph.initializers[key].shape, np.float32)
    return np.asarray(drawn * np.float32(deviation))


def _fill_conv(graph: Graph, node: Node, _: Array, seed: int) -> dict[str, Array]:
    key = node.inputs[1]
    fan_in = int(np.prod(graph.initializers[key].shape[1:]))
    biases = {bias: _normal(graph, bias, seed, 0.1) for bias in node.inputs[2:]}
    return {key: _normal(graph, key, seed, (2 / fan_in) ** 0.5), **biases}


def _fill_batch_norm(_: Graph, node: Node, x: Array, seed: int) -> dict[str, Array]:
    """A bias above 0 keeps most channels in the straight part of relu, where a shift of the input grows least."""
    mean, variance, weight, bias = node.inputs[1:]
    channels = x.shape[1]
    drawn = {
        mean: x.mean((0, 2, 3), np.float64),
        variance: x.var((0, 2, 3), np.float64),
        weight: stream(seed, weight).uniform(0.6, 1.4, channels),
        bias: stream(seed, bias).normal(0.5, 0.4, channels),
    }
    return {key: array.astype(np.float32) for key, array in drawn.items()}


def _fill_linear(graph: Graph, node: Node, x: Array, seed: int) -> dict[str, Array]:
    """Logits with a deviation of about 2; the bias takes away what all images share, as training would."""
    weight, bias = node.inputs[1:3]
    matrix = _normal(graph, weight, seed, 2 / float(np.sqrt(x.var(0).sum())))
    shift = stream(seed, bias).normal(0.0, 0.1, len(matrix)) - matrix @ x.mean(0)
    return {weight: matrix, bias: shift.astype(np.float32)}


_FILLS: Mapping[str, Callable[[Graph, Node, Array, int], dict[str, Array]]] = {
    "conv2d": _fill_conv,
    "batch_norm": _fill_batch_norm,
    "linear": _fill_linear,
}
