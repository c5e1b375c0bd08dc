"""A float graph as a PyTorch module: real layers where PyTorch has them, so that its quantization finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from qtool.errors import EngineError
from qtool.ir import Array, Graph, Node
from qtool.ops.registry import attrs_of

LSTM_GATES, GRU_GATES = (0, 2, 3, 1), (1, 0, 2)
"""ONNX's gates in PyTorch's order."""


def module_of(graph: Graph) -> fx.GraphModule:
    """The graph as a traced module; its arguments are the graph's inputs, its result the output, or a tuple of them.

    EngineError that lists every operator there is no module or function for here.
    """
    unknown = {node.op for node in graph.nodes} - MODULES.keys() - FUNCTIONS.keys()
    if unknown:
        raise EngineError(f"not translated to PyTorch: {', '.join(sorted(unknown))}")
    return _Translation(graph).module()


class _Translation:
    """Collects the nodes of PyTorch's graph and the submodules they call."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made = fx.Graph()
        self._tracer = fx.proxy.GraphAppendingTracer(self.made)  # one for all: proxies of two do not mix
        self.values: dict[str, Any] = {name: self.made.placeholder(_plain(name)) for name in graph.inputs}
        self._children: dict[str, nn.Module] = {}
        self._buffers: dict[str, torch.Tensor] = {}

    def module(self) -> fx.GraphModule:
        for node in self.graph.nodes:
            if node.op in MODULES:
                made = MODULES[node.op](self, node)
            else:
                made = FUNCTIONS[node.op](*self._operands(node), attrs_of(node)).node
            self.values.update(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False))
        found = [self.read(name) for name in self.graph.outputs]
        self.made.output(found[0] if len(found) == 1 else tuple(found))
        root = nn.Module()
        for name, child in self._children.items():
            root.add_module(name, child)
        for name, tensor in self._buffers.items():
            root.register_buffer(name, tensor)
        return fx.GraphModule(root, self.made).eval()

    def read(self, name: str) -> Any:
        """A value in PyTorch's graph; a constant becomes a buffer."""
        if name not in self.values:
            key = f"constant_{_plain(name)}"
            self._buffers[key] = self.tensor(name)
            self.values[name] = self.made.get_attr(key)
        return self.values[name]

    def tensor(self, name: str) -> torch.Tensor:
        return _tensor(self.array(name))

    def array(self, name: str) -> Array:
        """A constant; EngineError for a parameter that is none."""
        if name not in self.graph.initializers:
            raise EngineError(f"'{name}' is a parameter of a layer and is computed at run time")
        return self.graph.initializers[name]

    def call(self, node: Node, child: nn.Module, parameters: Mapping[str, str] | None = None) -> Any:
        """The layer called on the node's first input, its parameters filled by the names of values."""
        for key, name in (parameters or {}).items():
            with torch.no_grad():
                getattr(child, key).copy_(self.tensor(name))
        key = _plain(node.name)
        self._children[key] = child
        return self.made.call_module(key, (self.read(node.inputs[0]),))

    def proxy(self, made: Any) -> Any:
        """Something functions of PyTorch can be called on, which then are nodes of its graph."""
        return fx.Proxy(made, self._tracer)

    def _operands(self, node: Node) -> list[Any]:
        return [self.proxy(self.read(name)) for name in node.inputs if name]


def _plain(name: str) -> str:
    """A name as PyTorch takes it."""
    return "v_" + "".join(c if c.isalnum() else "_" for c in name)


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


# ------------------------------------------------------------------------------------------------------------- modules


def _names(node: Node, *keys: str) -> dict[str, str]:
    """The layer's parameters -> the node's inputs after the first; those left out are left out."""
    return {key: name for key, name in zip(keys, node.inputs[1:], strict=False) if name}


def _need(condition: bool, node: Node, what: str) -> None:
    if not condition:
        raise EngineError(f"{node.op} '{node.name}' with {what} is not translated to PyTorch")


def _even(node: Node, padding: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    _need(all(before == after for before, after in padding), node, f"padding {padding}")
    return tuple(before for before, _ in padding)


def _unfused(node: Node, attrs: Any) -> None:
    fused = attrs.activation != "none" or attrs.clamp is not None or any(node.inputs[3:])
    _need(not fused, node, "an activation or a residual of its own")


def _conv(rank: int) -> Callable[[_Translation, Node], Any]:
    def convert(to: _Translation, node: Node) -> Any:
        attrs: Any = attrs_of(node)
        _unfused(node, attrs)
        out, inner, *kernel = to.array(node.inputs[1]).shape
        kind: Callable[..., nn.Module] = (nn.Conv1d, nn.Conv2d)[rank - 1]
        layer = kind(
            inner * attrs.groups,
            out,
            tuple(kernel),
            attrs.stride,
            _even(node, attrs.padding),
            attrs.dilation,
            attrs.groups,
            bool("".join(node.inputs[2:3])),
            attrs.padding_mode,
        )
        return to.call(node, layer, _names(node, "weight", "bias"))

    return convert


def _linear(to: _Translation, node: Node) -> Any:
    _unfused(node, attrs_of(node))
    out, inner = to.array(node.inputs[1]).shape
    return to.call(node, nn.Linear(inner, out, bool("".join(node.inputs[2:3]))), _names(node, "weight", "bias"))


def _batch_norm(to: _Translation, node: Node) -> Any:
    attrs: Any = attrs_of(node)
    rank = len(to.graph.values[node.inputs[0]].shape)
    kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    layer = kind(len(to.array(node.inputs[1])), eps=attrs.eps)
    return to.call(node, layer, _names(node, "running_mean", "running_var", "weight", "bias"))


def _layer_norm(to: _Translation, node: Node) -> Any:
    attrs: Any = attrs_of(node)
    return to.call(node, nn.LayerNorm(attrs.normalized_shape, eps=attrs.eps), _names(node, "weight", "bias"))


def _pool(kind: type[nn.Module]) -> Callable[[_Translation, Node], Any]:
    def convert(to: _Translation, node: Node) -> Any:
        attrs: Any = attrs_of(node)
        same = ("ceil_mode", "dilation", "count_include_pad", "divisor_override")
        more = {key: getattr(attrs, key) for key in same if hasattr(attrs, key)}
        layer = kind(attrs.kernel_size, attrs.stride, _even(node, attrs.padding), **more)
        return to.call(node, layer)

    return convert


def _adaptive(kind: type[nn.Module]) -> Callable[[_Translation, Node], Any]:
    return lambda to, node: to.call(node, kind(attrs_of(node).output_size))


def _layer(make: Callable[[Any], nn.Module]) -> Callable[[_Translation, Node], Any]:
    return lambda to, node: to.call(node, make(attrs_of(node)))


def _embedding(to: _Translation, node: Node) -> Any:
    rows, columns = to.array(node.inputs[1]).shape
    return to.call(node, nn.Embedding(rows, columns), _names(node, "weight"))


class _TimeFirst(nn.Module):  # type: ignore[misc]  # without torch it is Any
    """A recurrent layer of PyTorch with the outputs that the graph's has: (time, directions, batch, hidden)."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.directions = 2 if layer.bidirectional else 1
        self.hidden = layer.hidden_size

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, last = self.layer(x)
        wide = y.reshape(y.shape[0], y.shape[1], self.directions, self.hidden).permute(0, 2, 1, 3)
        return (wide, *last) if isinstance(last, tuple) else (wide, last)


def _recurrent(kind: Callable[..., nn.RNNBase], gates: tuple[int, ...]) -> Callable[[_Translation, Node], Any]:
    def convert(to: _Translation, node: Node) -> Any:
        attrs: Any = attrs_of(node)
        usual = not attrs.activations and attrs.clip is None and attrs.layout == 0 and attrs.direction != "reverse"
        usual = usual and not getattr(attrs, "input_forget", False) and getattr(attrs, "linear_before_reset", True)
        _need(usual and not any(node.inputs[4:]), node, "settings or states that nn.LSTM and nn.GRU do not have")
        w, r = to.array(node.inputs[1]), to.array(node.inputs[2])
        bias = any(node.inputs[3:4])
        layer = kind(w.shape[2], attrs.hidden_size, bias=bias, bidirectional=attrs.directions == 2)
        arrays = {"weight_ih": w, "weight_hh": r}
        if bias:
            arrays["bias_ih"], arrays["bias_hh"] = np.split(to.array(node.inputs[3]), 2, axis=1)
        with torch.no_grad():
            for key, array in arrays.items():
                for direction, ending in enumerate(("", "_reverse")[: attrs.directions]):
                    parts = np.split(array[direction], len(gates))
                    getattr(layer, f"{key}_l0{ending}").copy_(_tensor(np.concatenate([parts[g] for g in gates])))
        called = to.proxy(to.call(node, _TimeFirst(layer)))
        return tuple(called[i].node for i in range(len(node.outputs)))

    return convert


MODULES: Mapping[str, Callable[[_Translation, Node], Any]] = {
    "adaptive_avg_pool1d": _adaptive(nn.AdaptiveAvgPool1d),
    "adaptive_avg_pool2d": _adaptive(nn.AdaptiveAvgPool2d),
    "adaptive_max_pool2d": _adaptive(nn.AdaptiveMaxPool2d),
    "avg_pool1d": _pool(nn.AvgPool1d),
    "avg_pool2d": _pool(nn.AvgPool2d),
    "batch_norm": _batch_norm,
    "clamp": _layer(lambda attrs: nn.Hardtanh(attrs.low, attrs.high)),
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "dropout": _layer(lambda attrs: nn.Dropout(attrs.p)),
    "elu": _layer(lambda attrs: nn.ELU(attrs.alpha)),
    "embedding": _embedding,
    "gelu": _layer(lambda attrs: nn.GELU(attrs.approximate)),
    "gru": _recurrent(nn.GRU, GRU_GATES),
    "hardsigmoid": _layer(lambda _: nn.Hardsigmoid()),
    "hardswish": _layer(lambda _: nn.Hardswish()),
    "hardtanh": _layer(lambda attrs: nn.Hardtanh(attrs.low, attrs.high)),
    "layer_norm": _layer_norm,
    "leaky_relu": _layer(lambda attrs: nn.LeakyReLU(attrs.negative_slope)),
    "linear": _linear,
    "lstm": _recurrent(nn.LSTM, LSTM_GATES),
    "max_pool1d": _pool(nn.MaxPool1d),
    "max_pool2d": _pool(nn.MaxPool2d),
    "relu": _layer(lambda _: nn.ReLU()),
    "relu6": _layer(lambda _: nn.ReLU6()),
    "sigmoid": _layer(lambda _: nn.Sigmoid()),
    "silu": _layer(lambda _: nn.SiLU()),
    "softmax": _layer(lambda attrs: nn.Softmax(attrs.dim)),
    "tanh": _layer(lambda _: nn.Tanh()),
}
"""Operators that are layers of PyTorch."""

# ----------------------------------------------------------------------------------------------------------- functions


def _add(a: Any, b: Any, attrs: Any) -> Any:
    return F.relu(torch.add(a, b)) if attrs.activation == "relu" else torch.add(a, b)


def _cat(*tensors_and_attrs: Any) -> Any:
    *tensors, attrs = tensors_and_attrs
    return torch.cat(tensors, attrs.dim)


def _pad(x: Any, attrs: Any) -> Any:
    return F.pad(x, attrs.pad, attrs.mode, attrs.value if attrs.mode == "constant" else None)


def _slice(x: Any, attrs: Any) -> Any:
    if attrs.dim < 0:
        raise EngineError(f"a slice along axis {attrs.dim} is not translated to PyTorch")
    return x[(slice(None),) * attrs.dim + (slice(attrs.start, attrs.end, attrs.step),)]


def _mean(x: Any, attrs: Any) -> Any:
    return torch.mean(x) if attrs.dim is None else torch.mean(x, attrs.dim, attrs.keepdim)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": _add,
    "cat": _cat,
    "div": lambda a, b, _: torch.div(a, b),
    "exp": lambda x, _: torch.exp(x),
    "flatten": lambda x, attrs: torch.flatten(x, attrs.start_dim, attrs.end_dim),
    "matmul": lambda a, b, _: torch.matmul(a, b),
    "mean": _mean,
    "mul": lambda a, b, _: torch.mul(a, b),
    "pad": _pad,
    "permute": lambda x, attrs: x.permute(attrs.dims),
    "reshape": lambda x, attrs: x.reshape(attrs.shape),
    "slice": _slice,
    "sqrt": lambda x, _: torch.sqrt(x),
    "squeeze": lambda x, attrs: torch.squeeze(x, attrs.dim),
    "sub": lambda a, b, _: torch.sub(a, b),
    "transpose": lambda x, attrs: torch.transpose(x, attrs.dim0, attrs.dim1),
    "unsqueeze": lambda x, attrs: torch.unsqueeze(x, attrs.dim),
}
"""Operators that are functions of PyTorch: (operands, attributes) -> result."""
