"""Graphs for the tests of the graph and its file; they need no operator."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from qtool.ir import DType, Graph, Node, QParams, Value, constant


def float_graph() -> Graph:
    """x -> linear -> relu -> linear -> split, with a scalar, a bool and an int64 initializer on the side."""
    rng = np.random.default_rng(0)
    arrays = {
        "fc1.weight": rng.standard_normal((6, 4), np.float32),
        "fc1.bias": rng.standard_normal(6, np.float32),
        "fc2/weight:0": rng.standard_normal((4, 6), np.float32),
        "two": np.array(2.0, np.float32),
        "mask": np.array([True, False]),
        "index": np.array([1, 2**62], np.int64),
    }
    nodes = (
        Node("linear", "fc1", ("x", "fc1.weight", "fc1.bias"), ("fc1",), {"activation": "none"}, "fc1"),
        Node("clamp", "act", ("fc1",), ("act",), {"low": 0.0, "high": float("inf")}),
        Node(
            "linear",
            "fc2",
            ("act", "fc2/weight:0", ""),
            ("fc2",),
            {"sizes": ((1, -2), ()), "on": True, "no": None},
            "fc2",
        ),
        Node("odd", "odd", ("fc2", "two", "mask", "index"), ("left", "right"), {"text": 'é "\\ \n'}, "a.b"),
    )
    shapes = {"x": ("N", 4), "fc1": ("N", 6), "act": ("N", 6), "fc2": ("N", 4), "left": ("N*2",), "right": ()}
    values = {name: Value(name, DType.FLOAT32, shape) for name, shape in shapes.items()}
    values.update((name, constant(name, array)) for name, array in arrays.items())
    return Graph("sample", ("x",), ("left",), nodes, values, arrays)


def quantized_graph(channels: int = 5) -> Graph:
    """x -> quantize -> conv2d with per-channel weights (twice, the second with its own zero points) -> dequantize."""
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.001, 0.1, channels).astype(np.float32)
    same = QParams(scale, np.zeros(channels, np.int32), DType.INT8, 0)
    other = QParams(scale[::-1].copy(), np.arange(channels, dtype=np.int32), DType.INT8, 0)
    arrays = {
        "a.weight.q": rng.integers(-127, 128, (channels, 3, 3, 3)).astype(np.int8),
        "a.bias": rng.standard_normal(channels, np.float32),
        "b.weight.q": rng.integers(-127, 128, (channels, channels, 1, 1)).astype(np.int8),
    }
    nodes = (
        Node("quantize", "x.q", ("x",), ("x.q",)),
        Node("conv2d", "a.q", ("x.q", "a.weight.q", "a.bias"), ("a.q",), {"stride": (1, 1)}, "a"),
        Node("conv2d", "b.q", ("a.q", "b.weight.q"), ("b.q",), {"stride": (1, 1)}, "b"),
        Node("dequantize", "b", ("b.q",), ("b",)),
    )
    act = QParams.per_tensor(0.1, 128, DType.UINT8)
    values = [
        Value("x", DType.FLOAT32, ("N", 3, 8, 8)),
        Value("x.q", DType.UINT8, ("N", 3, 8, 8), act),
        Value("a.q", DType.UINT8, ("N", channels, 6, 6), QParams.per_tensor(1 / 3, 0, DType.UINT8)),
        Value("b.q", DType.UINT8, ("N", channels, 6, 6), QParams.per_tensor(1.1754944e-38, 255, DType.UINT8)),
        Value("b", DType.FLOAT32, ("N", channels, 6, 6)),
        constant("a.weight.q", arrays["a.weight.q"], same),
        constant("a.bias", arrays["a.bias"]),
        constant("b.weight.q", arrays["b.weight.q"], other),
    ]
    meta = MappingProxyType(
        {"qtool": "0.1.0", "recipe": {"mode": "static", "rules": [{"": None}]}, "calibration": "ab" * 32}
    )
    return Graph("q", ("x",), ("b",), nodes, {v.name: v for v in values}, arrays, "fbgemm", meta)


def same_graph(a: Graph, b: Graph) -> bool:
    """Equal in everything that a file keeps, the order of nodes included."""
    plain = replace(a, initializers={}, values={}), replace(b, initializers={}, values={})
    return (
        plain[0] == plain[1]
        and dict(a.values) == dict(b.values)
        and a.initializers.keys() == b.initializers.keys()
        and all(_same_array(a.initializers[name], b.initializers[name]) for name in a.initializers)
    )


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


_MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, repeats, stride) of MobileNetV2's blocks (Sandler et al. 2018, table 2)."""


def mobilenet_v2_int8(per_channel: bool) -> Graph:
    """MobileNetV2 as convert leaves it, with random weights: folded batch norms, every value quantized."""
    made = _Int8Chain(per_channel)
    made.conv("features.0.0", 3, 32, 3, 1, 112)
    width, size, index = 32, 112, 1
    for expansion, channels, repeats, stride in _MOBILENET:
        for repeat in range(repeats):
            hidden, size = width * expansion, size // stride if repeat == 0 else size
            if expansion > 1:
                made.conv(f"features.{index}.conv.0.0", width, hidden, 1, 1, size)
            made.conv(f"features.{index}.conv.{1 if expansion > 1 else 0}.0", hidden, hidden, 3, hidden, size)
            made.conv(f"features.{index}.conv.{2 if expansion > 1 else 1}", hidden, channels, 1, 1, size)
            if repeat:
                made.add(f"features.{index}.add", channels, size)
            width, index = channels, index + 1
    made.conv("features.18.0", 320, 1280, 1, 1, 7)
    made.conv("classifier.1", 1280, 1000, 1, 1, 1)
    return made.finish()


class _Int8Chain:
    def __init__(self, per_channel: bool) -> None:
        self.rng = np.random.default_rng(3)
        self.per_channel = per_channel
        self.nodes = [Node("quantize", "x.q", ("x",), ("x.q",))]
        self.values = [Value("x", DType.FLOAT32, ("N", 3, 224, 224)), self._activation("x.q", 3, 224)]
        self.arrays: dict[str, np.ndarray] = {}

    def conv(self, scope: str, inputs: int, outputs: int, kernel: int, groups: int, size: int) -> None:
        weight = self.rng.integers(-127, 128, (outputs, inputs // groups, kernel, kernel)).astype(np.int8)
        scale = self.rng.uniform(0.0005, 0.05, outputs if self.per_channel else 1).astype(np.float32)
        axis = 0 if self.per_channel else None
        qparams = QParams(scale, np.zeros(len(scale), np.int32), DType.INT8, axis)
        names = (f"{scope}.weight.q", f"{scope}.bias")
        self.arrays.update(zip(names, (weight, self.rng.standard_normal(outputs, np.float32)), strict=True))
        self.values.append(constant(names[0], weight, qparams))
        self.values.append(constant(names[1], self.arrays[names[1]]))
        attrs = {
            "stride": (1, 1),
            "padding": ((kernel // 2,) * 2,) * 2,
            "groups": groups,
            "activation": "clamp",
            "clamp": (0.0, 6.0),
        }
        self._node("conv2d", scope, (self.nodes[-1].outputs[0], *names), attrs, outputs, size)

    def add(self, scope: str, channels: int, size: int) -> None:
        self._node("add", scope, (self.nodes[-1].outputs[0], self.nodes[-4].outputs[0]), {}, channels, size)

    def _node(self, op: str, scope: str, inputs: tuple[str, ...], attrs: dict, channels: int, size: int) -> None:
        self.nodes.append(Node(op, f"{scope}.q", inputs, (f"{scope}.q",), attrs, scope))
        self.values.append(self._activation(f"{scope}.q", channels, size))

    def _activation(self, name: str, channels: int, size: int) -> Value:
        scale = float(np.float32(self.rng.uniform(0.01, 0.1)))
        qparams = QParams.per_tensor(scale, int(self.rng.integers(0, 256)), DType.UINT8)
        return Value(name, DType.UINT8, ("N", channels, size, size), qparams)

    def finish(self) -> Graph:
        self.values.append(Value("out", DType.FLOAT32, self.values[-1].shape))
        nodes = (*self.nodes, Node("dequantize", "out", (self.nodes[-1].outputs[0],), ("out",)))
        return Graph("mobilenet_v2", ("x",), ("out",), nodes, {v.name: v for v in self.values}, self.arrays, "fbgemm")
