"""Every operator's float reference against PyTorch's operator, over random shapes and attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from op_cases import CASES, Case
from op_onnx_cases import ONNX_CASES

from qtool.ops import all_ops, get, parse_attrs

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.peers

TOLERANCE = 1e-5
"""Sums of some hundred products of numbers near 1, added in another order, differ by a few units of 1e-6."""
TOLERANCES = {"layer_norm": 1e-4}
"""PyTorch's layer_norm works in float32: where two neighbours are all it has, 1 / std enlarges its rounding errors."""


def _flat(padding: Any) -> list[int]:
    return [n for pair in reversed(padding) for n in pair]


def _activate(y: Any, attrs: Any) -> Any:
    if attrs.activation == "clamp":  # differs from torch.clamp in the derivative at the limits
        return F.hardtanh(y, *attrs.clamp)
    return {"none": lambda v: v, "relu": torch.relu, "hardswish": F.hardswish}[attrs.activation](y)


def _conv(attrs: Any, x: Any, weight: Any, bias: Any = None, residual: Any = None) -> Any:
    mode = "constant" if attrs.padding_mode == "zeros" else attrs.padding_mode
    x = F.pad(x, _flat(attrs.padding), mode)
    function = (F.conv1d, F.conv2d, F.conv3d)[len(attrs.stride) - 1]
    y = function(x, weight, bias, attrs.stride, 0, attrs.dilation, attrs.groups)
    return _activate(y if residual is None else y + residual, attrs)


def _is_torch_padding(attrs: Any) -> bool:
    """PyTorch pads both sides alike and by half a kernel at most."""
    return all(a == b and a <= k // 2 for (a, b), k in zip(attrs.padding, attrs.kernel_size, strict=True))


def _max_pool(attrs: Any, x: Any) -> Any:
    function = F.max_pool1d if len(attrs.stride) == 1 else F.max_pool2d
    padding = [before for before, _ in attrs.padding]
    if not _is_torch_padding(attrs):
        if attrs.ceil_mode:
            reject()  # where the last window may start depends on what is padding and what is data
        x, padding = F.pad(x, _flat(attrs.padding), value=-np.inf), [0] * len(padding)
    return function(x, attrs.kernel_size, attrs.stride, padding, attrs.dilation, attrs.ceil_mode)


def _avg_pool(attrs: Any, x: Any) -> Any:
    rank = len(attrs.stride)
    if _is_torch_padding(attrs):
        function = F.avg_pool1d if rank == 1 else F.avg_pool2d
        padding = [before for before, _ in attrs.padding]
        more = (attrs.divisor_override,) if rank == 2 else ()
        args = (attrs.kernel_size, attrs.stride, padding, attrs.ceil_mode, attrs.count_include_pad)
        return function(x, *args, *more)
    if attrs.ceil_mode:
        reject()

    def sums(data: Any) -> Any:
        padded = F.pad(data, _flat(attrs.padding))
        taps = torch.ones((data.shape[1], 1, *attrs.kernel_size))
        function = F.conv1d if rank == 1 else F.conv2d
        return function(padded, taps, stride=attrs.stride, groups=data.shape[1])

    divisor = getattr(attrs, "divisor_override", None)
    if divisor is None:
        divisor = float(np.prod(attrs.kernel_size)) if attrs.count_include_pad else sums(torch.ones_like(x))
    return sums(x) / divisor


def _linear(attrs: Any, x: Any, weight: Any, bias: Any = None, residual: Any = None) -> Any:
    y = F.linear(x, weight, bias)
    return _activate(y if residual is None else y + residual, attrs)


def _batch_norm(attrs: Any, x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None) -> Any:
    return F.batch_norm(x, mean, var, weight, bias, eps=attrs.eps)


def _slice(attrs: Any, x: Any) -> Any:
    index = [slice(None)] * x.ndim
    index[attrs.dim] = slice(attrs.start, attrs.end, attrs.step)
    return x[tuple(index)]


def _pad(attrs: Any, x: Any) -> Any:
    return F.pad(x, attrs.pad, attrs.mode, *([attrs.value] if attrs.mode == "constant" else []))


PEERS: dict[str, Callable[..., Any]] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "linear": _linear,
    "linear_dynamic": _linear,
    "matmul": lambda _, a, b: torch.matmul(a, b),
    "batch_norm": _batch_norm,
    "layer_norm": lambda a, x, w=None, b=None: F.layer_norm(x, a.normalized_shape, w, b, a.eps),
    "relu": lambda _, x: F.relu(x),
    "relu6": lambda _, x: F.relu6(x),
    "hardtanh": lambda a, x: F.hardtanh(x, a.low, a.high),
    "clamp": lambda a, x: torch.clamp(x, a.low, a.high),
    "leaky_relu": lambda a, x: F.leaky_relu(x, a.negative_slope),
    "prelu": lambda _, x, w: F.prelu(x, w),
    "elu": lambda a, x: F.elu(x, a.alpha),
    "hardswish": lambda _, x: F.hardswish(x),
    "hardsigmoid": lambda _, x: F.hardsigmoid(x),
    "sigmoid": lambda _, x: torch.sigmoid(x),
    "tanh": lambda _, x: torch.tanh(x),
    "gelu": lambda a, x: F.gelu(x, approximate=a.approximate),
    "silu": lambda _, x: F.silu(x),
    "softmax": lambda a, x: torch.softmax(x, a.dim),
    "add": lambda attrs, a, b: torch.relu(a + b) if attrs.activation == "relu" else a + b,
    "sub": lambda _, a, b: a - b,
    "mul": lambda _, a, b: a * b,
    "div": lambda _, a, b: a / b,
    "cat": lambda a, *xs: torch.cat(xs, a.dim),
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool1d": lambda a, x: F.adaptive_avg_pool1d(x, a.output_size[0]),
    "adaptive_avg_pool2d": lambda a, x: F.adaptive_avg_pool2d(x, a.output_size),
    "adaptive_max_pool1d": lambda a, x: F.adaptive_max_pool1d(x, a.output_size[0]),
    "adaptive_max_pool2d": lambda a, x: F.adaptive_max_pool2d(x, a.output_size),
    "pad": _pad,
    "flatten": lambda a, x: torch.flatten(x, a.start_dim, a.end_dim),
    "reshape": lambda a, x: torch.reshape(x, a.shape),
    "transpose": lambda a, x: torch.transpose(x, a.dim0, a.dim1),
    "permute": lambda a, x: torch.permute(x, a.dims),
    "squeeze": lambda a, x: torch.squeeze(x, a.dim),
    "unsqueeze": lambda a, x: torch.unsqueeze(x, a.dim),
    "slice": _slice,
    "split": lambda a, x: torch.split(x, list(a.split_sizes), a.dim),
    "mean": lambda a, x: torch.mean(x, a.dim, a.keepdim),
    "sum": lambda a, x: torch.sum(x, a.dim, a.keepdim),
    "embedding": lambda _, ids, weight: F.embedding(ids, weight),
    "dropout": lambda a, x: F.dropout(x, a.p, training=False),
    "identity": lambda _, x: torch.nn.Identity()(x),
}
NO_PEER = {"quantize", "dequantize"}
"""Their references are the identity on logical values; the rounding is tested with QParams and the engine."""
ELSEWHERE = {"embedding_rows", "lstm_dynamic", "gru_dynamic", "rnn_dynamic"}
"""Quantized at run time: compared with torch's quantized modules in test_dynamic_*_torch."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_operator_has_a_peer():
    """Operators with ONNX's semantics are judged by its own cases (test_ops2_onnx) and by torch in test_ops2_torch."""
    assert set(PEERS) | NO_PEER | ELSEWHERE | set(ONNX_CASES) == set(all_ops())
    assert set(CASES) - set(ONNX_CASES) == (set(PEERS) | NO_PEER | ELSEWHERE) - set(ONNX_CASES)


@pytest.mark.parametrize("op", sorted(PEERS))
def test_reference_agrees_with_torch(op: str):
    tolerance = TOLERANCES.get(op, TOLERANCE)

    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CASES[op])
    def check(case: Case):
        attrs = parse_attrs(get(op).attrs, case.attrs, op)
        ours = get(op).reference(attrs, *case.arrays)
        tensors = [None if array is None else torch.from_numpy(array.copy()) for array in case.arrays]
        theirs = PEERS[op](attrs, *tensors)
        theirs = theirs if isinstance(theirs, tuple) else (theirs,)
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.shape == tuple(other.shape)
            np.testing.assert_allclose(mine, other.numpy(), rtol=tolerance, atol=tolerance, err_msg=repr(case))

    check()
