"""Numbers for a zoo graph: those of a state dict, or random ones with batch-norm statistics that fit them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtool.errors import ModelError
from qtool.ir import Array, Graph, Node
from qtool.ops.registry import attrs_of

Vector = NDArray[np.float64]


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


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a value's channels, over images and pixels."""

    mean: Vector
    variance: Vector


def random(graph: Graph, seed: int) -> Graph:
    """The graph with seeded random weights that behave as trained ones do.

    Convolutions are drawn as He et al. (2015, arXiv:1502.01852) have it; the moments of every channel are followed
    through the graph, as of independent Gaussians, and become the running statistics of batch norm. Activations so stay
    of the order of 1 at any depth, and logits differ from image to image. Every array has a random stream of its own,
    made of ``seed`` and its key: the same at any place in the architecture.
    """
    arrays: dict[str, Array] = {}
    moments: dict[str, Moments] = {name: _image_moments(graph, name) for name in graph.inputs}

    def draw(key: str) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(key.encode())])

    for node in graph.nodes:
        filled, moments[node.outputs[0]] = _RULES[node.op](graph, node, moments, draw)
        arrays.update(filled)
    return _with_arrays(graph, {key: array.astype(np.float32) for key, array in arrays.items()})


Draw = Callable[[str], np.random.Generator]
Known = Mapping[str, Moments]
Filled = tuple[dict[str, Array], Moments]


def _image_moments(graph: Graph, name: str) -> Moments:
    channels = int(graph.values[name].shape[1])
    return Moments(np.zeros(channels), np.ones(channels))


def _conv(graph: Graph, node: Node, known: Known, draw: Draw) -> Filled:
    x, key = known[node.inputs[0]], node.inputs[1]
    shape = graph.initializers[key].shape
    groups = attrs_of(node).groups
    fan_in = int(np.prod(shape[1:]))
    weight = draw(key).standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
    # Sums over the taps of one input channel; then over the channels of the output's group.
    sums, squares = weight.sum((2, 3), np.float64), np.square(weight).sum((2, 3), np.float64)
    means, variances = (np.repeat(v.reshape(groups, -1), shape[0] // groups, 0) for v in (x.mean, x.variance))
    return {key: weight}, Moments((sums * means).sum(1), (squares * variances).sum(1))


def _batch_norm(_: Graph, node: Node, known: Known, draw: Draw) -> Filled:
    x = known[node.inputs[0]]
    mean, variance, weight, bias = node.inputs[1:]
    gamma = draw(weight).uniform(0.6, 1.4, x.mean.shape)
    beta = draw(bias).normal(0.0, 0.2, x.mean.shape)
    return {mean: x.mean, variance: x.variance, weight: gamma, bias: beta}, Moments(beta, np.square(gamma))


def _relu(_: Graph, node: Node, known: Known, __: Draw) -> Filled:
    """Moments of a rectified Gaussian; the 6 of relu6 is more than four deviations away and does not matter."""
    x = known[node.inputs[0]]
    deviation = np.sqrt(x.variance)
    z = x.mean / deviation
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    # The logistic function stands for the normal distribution (within 0.01): NumPy has no erf.
    probability = 1 / (1 + np.exp(-1.702 * z))
    mean = x.mean * probability + deviation * density
    square = (np.square(x.mean) + x.variance) * probability + x.mean * deviation * density
    return {}, Moments(mean, np.maximum(square - np.square(mean), 1e-3 * x.variance))


def _add(graph: Graph, node: Node, known: Known, _: Draw) -> Filled:
    a, b = known[node.inputs[0]], _operand(graph, known, node.inputs[1])
    return {}, Moments(a.mean + b.mean, a.variance + b.variance)


def _scale(graph: Graph, node: Node, known: Known, _: Draw) -> Filled:
    x, factor = known[node.inputs[0]], _operand(graph, known, node.inputs[1]).mean
    return {}, Moments(x.mean * factor, x.variance * np.square(factor))


def _operand(graph: Graph, known: Known, name: str) -> Moments:
    """Moments of a value, or of a constant of one number a channel."""
    if name in known:
        return known[name]
    constant = graph.initializers[name].reshape(-1).astype(np.float64)
    return Moments(constant, np.zeros_like(constant))


def _cat(_: Graph, node: Node, known: Known, __: Draw) -> Filled:
    parts = [known[name] for name in node.inputs]
    return {}, Moments(np.concatenate([p.mean for p in parts]), np.concatenate([p.variance for p in parts]))


def _max_pool(_: Graph, node: Node, known: Known, __: Draw) -> Filled:
    """The largest of three independent Gaussians: 2x2 or 3x3 neighbours are far from independent."""
    x = known[node.inputs[0]]
    return {}, Moments(x.mean + 0.846 * np.sqrt(x.variance), 0.559 * x.variance)


def _average(graph: Graph, node: Node, known: Known, _: Draw) -> Filled:
    """Neighbouring pixels are alike: n of them count as sqrt(n) independent ones."""
    x = known[node.inputs[0]]
    if node.op == "avg_pool2d":
        pixels = int(np.prod(attrs_of(node).kernel_size))
    else:
        pixels = int(np.prod([int(n) for n in graph.values[node.inputs[0]].shape[2:]]))
    return {}, Moments(x.mean, x.variance / np.sqrt(pixels))


def _same(_: Graph, node: Node, known: Known, __: Draw) -> Filled:
    return {}, known[node.inputs[0]]


def _linear(graph: Graph, node: Node, known: Known, draw: Draw) -> Filled:
    """Logits with a deviation of about 2; the bias takes away what all images share, as training would."""
    x, key, bias = known[node.inputs[0]], node.inputs[1], node.inputs[2]
    deviation = 2 / np.sqrt(x.variance.sum())
    weight = draw(key).standard_normal(graph.initializers[key].shape, np.float32) * np.float32(deviation)
    shift = draw(bias).normal(0.0, 0.1, weight.shape[0]) - weight @ x.mean
    return {key: weight, bias: shift}, Moments(np.zeros(len(shift)), np.full(len(shift), 4.0))


_RULES: Mapping[str, Callable[[Graph, Node, Known, Draw], Filled]] = {
    "conv2d": _conv,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "relu6": _relu,
    "add": _add,
    "mul": _scale,
    "cat": _cat,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average,
    "adaptive_avg_pool2d": _average,
    "flatten": _same,
    "linear": _linear,
}
