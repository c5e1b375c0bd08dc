"""Models of sequences as PyTorch exports them: attention out of products and softmax, one LSTM a layer.

Both are made for measuring and have random weights only, drawn as their authors initialize them.
"""

from __future__ import annotations

import numpy as np

from qtool.ir import Array, DType, Graph
from qtool.ops.builder import Builder
from qtool.zoo.weights import stream

DEVIATION = 0.02
"""Of BERT's weights before training (Devlin et al., 2018, arXiv:1810.04805; ``initializer_range``)."""


class SequenceNet:
    """Layers with seeded random weights under the module paths of PyTorch's models."""

    def __init__(self, name: str, seed: int) -> None:
        self.builder = Builder(name)
        self._seed = seed

    def param(self, name: str, shape: tuple[int, ...], deviation: float) -> str:
        """Normally distributed, each array from a random stream of its own."""
        drawn = stream(self._seed, f"{self.builder.path}.{name}").standard_normal(shape, np.float32)
        return self.builder.param(name, drawn * np.float32(deviation))

    def constant(self, name: str, array: Array) -> str:
        return self.builder.param(name, array.astype(np.float32))

    def linear(self, x: str, name: str, out: int) -> str:
        """A linear layer with bias over the last axis."""
        width = int(self.builder.value(x).shape[-1])
        with self.builder.scope(name):
            weight, bias = self.param("weight", (out, width), DEVIATION), self.param("bias", (out,), DEVIATION)
            return self.builder.node("linear", [x, weight, bias])

    def layer_norm(self, x: str, name: str) -> str:
        width = int(self.builder.value(x).shape[-1])
        with self.builder.scope(name):
            scale, shift = self.constant("weight", np.ones(width)), self.constant("bias", np.zeros(width))
            return self.builder.node("layer_norm", [x, scale, shift], normalized_shape=(width,), eps=1e-12)

    def function(self, op: str, *inputs: str, **attrs: object) -> str:
        """An operator that belongs to the open module."""
        return self.builder.node(op, inputs, name=op, **attrs)  # type: ignore[arg-type]


def bert_base_layers(seed: int) -> Graph:
    """The twelve encoder layers of BERT-base, without embeddings: x (N, 128, 768) -> (N, 128, 768)."""
    net = SequenceNet("bert_base_layers", seed)
    y = net.builder.input("x", ("N", 128, 768))
    for layer in range(12):
        with net.builder.scope(f"encoder.layer.{layer}"):
            y = _encoder_layer(net, y, heads=12)
    return net.builder.finish([y])


def _encoder_layer(net: SequenceNet, x: str, heads: int) -> str:
    scope, width = net.builder.scope, int(net.builder.value(x).shape[-1])
    with scope("attention"):
        with scope("self"):
            context = _attention(net, x, heads)
        with scope("output"):
            x = net.layer_norm(net.function("add", net.linear(context, "dense", width), x), "LayerNorm")
    with scope("intermediate"):
        wide = net.function("gelu", net.linear(x, "dense", 4 * width))
    with scope("output"):
        return net.layer_norm(net.function("add", net.linear(wide, "dense", width), x), "LayerNorm")


def _attention(net: SequenceNet, x: str, heads: int) -> str:
    """softmax(q k' / sqrt(d)) v with d numbers a head."""
    _, length, width = (n if isinstance(n, int) else -1 for n in net.builder.value(x).shape)
    size = width // heads

    def split(name: str, dims: tuple[int, ...]) -> str:
        apart = net.function("reshape", net.linear(x, name, width), shape=(-1, length, heads, size))
        return net.function("permute", apart, dims=dims)

    query, key, value = split("query", (0, 2, 1, 3)), split("key", (0, 2, 3, 1)), split("value", (0, 2, 1, 3))
    root = net.constant("root", np.sqrt(size))
    scores = net.function("div", net.function("matmul", query, key), root)
    joined = net.function("matmul", net.function("softmax", scores, dim=-1), value)
    return net.function("reshape", net.function("permute", joined, dims=(0, 2, 1, 3)), shape=(-1, length, width))


def lstm_lm(seed: int) -> Graph:
    """A word language model as in PyTorch's examples: tokens (35, N) -> scores (35, N, 33278).

    An embedding of 33,278 words (those of WikiText-2), two LSTM layers of 512, and a linear decoder.
    """
    words, width = 33278, 512
    net = SequenceNet("lstm_lm", seed)
    tokens = net.builder.input("tokens", (35, "N"), DType.INT64)
    with net.builder.scope("encoder"):
        y = net.builder.node("embedding", [tokens, net.param("weight", (words, width), 0.1)])
    for layer in range(2):
        with net.builder.scope(f"rnn.{layer}"):
            y = _lstm(net, y, width)
    return net.builder.finish([net.linear(y, "decoder", words)])


def _lstm(net: SequenceNet, x: str, hidden: int) -> str:
    """One layer of nn.LSTM: (time, N, inputs) -> (time, N, hidden)."""
    width, deviation = int(net.builder.value(x).shape[-1]), (3 * hidden) ** -0.5
    shapes = {"w": (1, 4 * hidden, width), "r": (1, 4 * hidden, hidden), "b": (1, 8 * hidden)}
    parameters = [net.param(name, shape, deviation) for name, shape in shapes.items()]
    y, _, _ = net.builder.nodes("lstm", [x, *parameters], 3, hidden_size=hidden)
    return net.function("squeeze", y, dim=(1,))
