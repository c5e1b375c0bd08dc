"""Random graphs of many operators, in int8 or float: for tests of what happens between operators."""

from __future__ import annotations

import numpy as np

from qtool.ir import DType, Graph, QParams, Shape
from qtool.ops import Builder

BACKENDS = ("fbgemm", "onednn", "qnnpack")


class RandomGraph:
    """A graph with input ``x`` (N, C, H, W) of float32; ``quantized`` ones compute in int8 inside."""

    def __init__(self, seed: int, *, quantized: bool, steps: int = 14) -> None:
        self._rng = np.random.default_rng(seed)
        self._quantized = quantized
        self._b = Builder("random")
        self._storage = DType.INT8 if self._rng.random() < 0.2 else DType.UINT8
        channels, size = int(self._rng.choice([1, 3, 8])), int(self._rng.integers(5, 13))
        x = self._b.input("x", ("N", channels, size, size + 1))
        self._values = [self._b.node("quantize", [x], qparams=self._qparams()) if quantized else x]
        outputs = []
        for _ in range(steps):
            step = self._rng.choice(self.STEPS)
            made = step(self, str(self._rng.choice(self._values[-4:])))
            self._values += [made] if made else []
            if made and self._rng.random() < 0.1:
                outputs.append(made)
        outputs.append(self._head(self._values[-1]))
        backend = str(self._rng.choice(BACKENDS)) if quantized else ""
        self.graph: Graph = self._b.finish(list(dict.fromkeys(outputs)), backend)

    def feeds(self, batch: int = 2) -> dict[str, np.ndarray]:
        shape = (batch, *self.graph.values["x"].shape[1:])
        return {"x": self._rng.standard_normal(shape).astype(np.float32) * 2}

    def _qparams(self, scale: float = 0.0) -> QParams | None:
        if not self._quantized:
            return None
        scale = scale or float(self._rng.uniform(0.01, 0.06))
        zero = int(self._rng.integers(0, 200)) - (128 if self._storage is DType.INT8 else 0)
        return QParams.per_tensor(scale, zero, self._storage)

    def _shape(self, name: str) -> Shape:
        return self._b.value(name).shape

    def _add(self, op: str, inputs: list[str], qparams: QParams | None, **attrs: object) -> str:
        return self._b.node(op, inputs, qparams=qparams, **attrs)

    def _same(self, op: str, x: str, **attrs: object) -> str:
        return self._add(op, [x], self._b.value(x).qparams, **attrs)

    def _weights(self, shape: tuple[int, ...]) -> tuple[str, str]:
        """Names of a weight and a bias for that many outputs."""
        number = len(self._values) * 100 + int(self._rng.integers(100_000_000))
        bias = self._b.param(f"bias{number}", self._rng.standard_normal(shape[0]).astype(np.float32) * 0.5)
        fan_in = int(np.prod(shape[1:]))
        if not self._quantized:
            weight = self._rng.standard_normal(shape).astype(np.float32) / np.sqrt(fan_in)
            return self._b.param(f"weight{number}", weight.astype(np.float32)), bias
        stored = self._rng.integers(-128, 128, shape).astype(np.int8)
        scale = self._rng.uniform(0.5, 1.5, shape[0]).astype(np.float32) * np.float32(1.4 / 74 / np.sqrt(fan_in))
        qparams = QParams(scale, np.zeros(shape[0], np.int32), DType.INT8, axis=0)
        return self._b.param(f"weight{number}", stored, qparams), bias

    # ---- steps: each makes one value, or none where it does not fit -------------------------------------------------

    def _conv(self, x: str) -> str | None:
        _, channels, height, width = self._shape(x)
        kernel = int(self._rng.choice([1, 3]))
        if min(height, width) < kernel:
            return None
        groups = int(self._rng.choice([1, 1, channels]))
        outputs = groups * int(self._rng.choice([1, 2])) if groups > 1 else int(self._rng.choice([4, 9, 16, 33]))
        if outputs > 64:
            return None
        weight, bias = self._weights((outputs, channels // groups, kernel, kernel))
        pad = int(self._rng.integers(0, 2)) * (kernel // 2)
        stride = int(self._rng.choice([1, 1, 2]))
        attrs = {"stride": (stride, stride), "padding": ((pad, pad), (pad, pad)), "groups": groups}
        activation = str(self._rng.choice(["none", "relu"]))
        return self._add("conv2d", [x, weight, bias], self._qparams(), activation=activation, **attrs)

    def _residual(self, x: str) -> str | None:
        _, channels, _, _ = self._shape(x)
        weight, bias = self._weights((channels, channels, 1, 1))
        y = self._add("conv2d", [x, weight, bias], self._qparams())
        if self._rng.random() < 0.3:
            y = self._same("relu6", y)
        inputs = [x, y] if self._rng.random() < 0.5 else [y, x]
        return self._add("add", inputs, self._qparams(), activation=str(self._rng.choice(["none", "relu"])))

    def _clamped(self, x: str) -> str:
        return self._same(str(self._rng.choice(["relu", "relu6", "hardtanh"])), x)

    def _curve(self, x: str) -> str:
        return self._add(str(self._rng.choice(["hardswish", "sigmoid", "leaky_relu", "tanh"])), [x], self._qparams())

    def _add_any(self, x: str) -> str | None:
        same = [name for name in self._values if self._shape(name) == self._shape(x)]
        return self._add("add", [x, str(self._rng.choice(same))], self._qparams())

    def _squeeze_excite(self, x: str) -> str | None:
        _, channels, _, _ = self._shape(x)
        pooled = self._same("adaptive_avg_pool2d", x, output_size=(1, 1))
        weight, bias = self._weights((channels, channels, 1, 1))
        gate = self._add("conv2d", [pooled, weight, bias], self._qparams())
        gate = self._add("hardsigmoid", [gate], self._qparams(1 / 256))
        return self._add("mul", [gate, x] if self._rng.random() < 0.5 else [x, gate], self._qparams())

    def _scalar(self, x: str) -> str:
        number = self._b.param(f"scalar{self._rng.integers(1 << 40)}", np.array(0.75, np.float32))
        return self._add(str(self._rng.choice(["add", "mul"])), [x, number], self._qparams())

    def _cat(self, x: str) -> str | None:
        spatial = self._shape(x)[2:]
        fitting = [name for name in self._values[-5:] if self._shape(name)[2:] == spatial]
        chosen = [str(name) for name in self._rng.choice(fitting, min(3, len(fitting)))]
        if sum(self._shape(name)[1] for name in chosen) > 64:
            return None
        return self._add("cat", chosen, self._qparams(), dim=1)

    def _max_pool(self, x: str) -> str | None:
        if min(self._shape(x)[2:]) < 3:
            return None
        return self._same("max_pool2d", x, kernel_size=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)))

    def _avg_pool(self, x: str) -> str | None:
        if min(self._shape(x)[2:]) < 3:
            return None
        return self._same("avg_pool2d", x, kernel_size=(2, 2), stride=(1, 1))

    def _slice(self, x: str) -> str | None:
        channels = self._shape(x)[1]
        return self._same("slice", x, dim=1, start=channels // 2) if channels > 1 else None

    def _transposed(self, x: str) -> str:
        """Height and width swapped; the way there goes over other orders of the axes."""
        order = [(0, 1, 3, 2), (0, 3, 2, 1), (0, 2, 3, 1)][int(self._rng.integers(3))]
        moved = self._same("permute", x, dims=order)
        moved = self._clamped(moved)
        back = tuple(int(axis) for axis in np.argsort(order))
        return self._same("permute", moved, dims=back)

    def _norm(self, x: str) -> str | None:
        """Float only: a batch norm, or a softmax over the channels or the columns."""
        if self._quantized:
            return None
        if self._rng.random() < 0.5:
            return self._b.node("softmax", [x], dim=int(self._rng.choice([1, 3])))
        arrays = self._rng.uniform(0.5, 2, (4, self._shape(x)[1])).astype(np.float32)
        key = self._rng.integers(1 << 40)
        return self._b.node("batch_norm", [x, *(self._b.param(f"norm{key}.{i}", a) for i, a in enumerate(arrays))])

    def _identity(self, x: str) -> str:
        return self._same("dropout", x)

    def _on_reference(self, x: str) -> str:
        """A piece that has no native form, padding."""
        if self._quantized:
            x = self._b.node("dequantize", [x])
        y = self._b.node("pad", [x], pad=(0, 1, 0, 0), mode="replicate")
        return self._b.node("quantize", [y], qparams=self._qparams()) if self._quantized else y

    def _head(self, x: str) -> str:
        shape = self._shape(x)
        y = self._same("adaptive_avg_pool2d", x, output_size=(1, 1)) if self._rng.random() < 0.5 else x
        y = self._same("flatten", y)
        features = int(np.prod(self._shape(y)[1:]) if y == x else self._shape(y)[1]) if shape[2:] else 0
        weight, bias = self._weights((10, features))
        y = self._add("linear", [y, weight, bias], self._qparams())
        return self._b.node("dequantize", [y]) if self._quantized and self._rng.random() < 0.8 else y

    STEPS = (
        *(_conv, _conv, _conv, _residual, _residual, _clamped, _curve, _add_any, _squeeze_excite, _scalar, _cat),
        *(_max_pool, _avg_pool, _slice, _transposed, _identity, _on_reference, _norm),
    )
