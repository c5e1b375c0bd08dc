"""PyTorch's quantized operator for an int8 case, and the arithmetic of its scalar loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from int8_cases import F32, MAKERS, Int8Case, Operand

from qtool.ir import Array, DType, QParams

AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
VNNI = torch.cpu._is_vnni_supported()
DTYPES = {DType.UINT8: torch.uint8, DType.INT8: torch.int8}
QDTYPES = {DType.UINT8: torch.quint8, DType.INT8: torch.qint8}
NHWC = torch.channels_last


def quantized(operand: Operand) -> torch.Tensor:
    """The quantized tensor of a stored array."""
    qparams = operand.qparams
    assert qparams is not None
    data = torch.tensor(operand.array, dtype=DTYPES[qparams.dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated
        if qparams.axis is None:
            return torch._make_per_tensor_quantized_tensor(data, float(qparams.scale[0]), int(qparams.zero_point[0]))
        scale, zero = torch.tensor(qparams.scale.astype(np.float64)), torch.tensor(qparams.zero_point.astype(np.int64))
        return torch._make_per_channel_quantized_tensor(data, scale, zero, qparams.axis)


def run(case: Int8Case, nhwc: bool = True) -> Array:
    """The stored result (or float32) of PyTorch's operator on the case's engine; pictures are NHWC in memory or not."""
    torch.backends.quantized.engine = case.backend
    inputs = [None if o is None else quantized(o) if o.qparams else torch.tensor(o.array) for o in case.operands]
    if nhwc and inputs[0].dim() == 4:
        inputs = [i.contiguous(memory_format=NHWC) if i is not None and i.dim() == 4 else i for i in inputs]
    out = (float(case.out.scale[0]), int(case.out.zero_point[0])) if case.out else (1.0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = OPERATORS[case.op](case, inputs, out)
    if y.is_quantized:
        assert (y.q_scale(), y.q_zero_point()) == out
        y = y.int_repr()
    return y.numpy()


def _clamped(case: Int8Case, y: torch.Tensor) -> torch.Tensor:
    """A clamp of its own: PyTorch fuses none. QNNPACK's mixes pictures up that are NHWC in memory."""
    return torch.clamp(y.contiguous(), *case.attrs["clamp"]) if case.attrs["activation"] == "clamp" else y


def _relu(case: Int8Case) -> str:
    return "_relu" if case.attrs.get("activation") == "relu" else ""


def _linear(case: Int8Case, inputs: list[Any], out: tuple[float, int]) -> torch.Tensor:
    packed = torch.ops.quantized.linear_prepack(inputs[1], inputs[2])
    return _clamped(case, getattr(torch.ops.quantized, f"linear{_relu(case)}")(inputs[0], packed, *out))


def _linear_dynamic(case: Int8Case, inputs: list[Any], _: tuple[float, int]) -> torch.Tensor:
    packed = torch.ops.quantized.linear_prepack(inputs[1], inputs[2])
    op = getattr(torch.ops.quantized, f"linear{_relu(case)}_dynamic")
    return op(inputs[0], packed, case.attrs["reduce_range"])


def _conv(case: Int8Case, inputs: list[Any], out: tuple[float, int]) -> torch.Tensor:
    attrs = case.attrs
    padding = [pair[0] for pair in attrs["padding"]]
    rank = len(padding)
    prepack = getattr(torch.ops.quantized, f"conv{rank}d_prepack")
    dilation = attrs.get("dilation", (1,) * rank)
    packed = prepack(inputs[1], inputs[2], attrs["stride"], padding, dilation, attrs["groups"])
    name = f"conv{rank}d{'_add' if len(inputs) > 3 else ''}{_relu(case)}"
    return _clamped(case, getattr(torch.ops.quantized, name)(inputs[0], *inputs[3:], packed, *out))


def _max_pool(case: Int8Case, inputs: list[Any], _: tuple[float, int]) -> torch.Tensor:
    attrs = case.attrs
    pool = {1: torch.nn.functional.max_pool1d, 2: torch.nn.functional.max_pool2d}[len(attrs["stride"])]
    padding = [pair[0] for pair in attrs["padding"]]
    return pool(inputs[0], attrs["kernel_size"], attrs["stride"], padding, attrs["dilation"])


def _avg_pool(case: Int8Case, inputs: list[Any], _: tuple[float, int]) -> torch.Tensor:
    attrs = case.attrs
    padding = [pair[0] for pair in attrs["padding"]]
    return torch.nn.functional.avg_pool2d(
        inputs[0], attrs["kernel_size"], attrs["stride"], padding, False, attrs["count_include_pad"]
    )


def _add(case: Int8Case, inputs: list[Any], out: tuple[float, int]) -> torch.Tensor:
    return getattr(torch.ops.quantized, f"add{_relu(case)}")(*inputs, *out)


OPERATORS: dict[str, Callable[[Int8Case, list[Any], tuple[float, int]], torch.Tensor]] = {
    "linear": _linear,
    "linear_dynamic": _linear_dynamic,
    "conv1d": _conv,
    "conv2d": _conv,
    "add": _add,
    "mul": lambda _, x, out: torch.ops.quantized.mul(*x, *out),
    "cat": lambda _, x, out: torch.ops.quantized.cat(x, 1, *out),
    "relu": lambda _, x, __: torch.relu(x[0]),
    "relu6": lambda _, x, __: torch.ops.quantized.relu6(x[0]),
    "hardtanh": lambda case, x, _: torch.nn.functional.hardtanh(x[0], case.attrs["low"], case.attrs["high"]),
    "clamp": lambda case, x, _: torch.clamp(x[0], case.attrs["low"], case.attrs["high"]),
    "leaky_relu": lambda case, x, out: torch.ops.quantized.leaky_relu(x[0], case.attrs["negative_slope"], False, *out),
    "elu": lambda case, x, out: torch.ops.quantized.elu(x[0], *out, case.attrs["alpha"]),
    "hardswish": lambda _, x, out: torch.ops.quantized.hardswish(x[0], *out),
    "hardsigmoid": lambda _, x, __: torch.ops.aten.hardsigmoid(x[0]),
    "sigmoid": lambda _, x, out: torch.ops.quantized.sigmoid(x[0], *out),
    "tanh": lambda _, x, __: torch.tanh(x[0]),
    "prelu": lambda _, x, out: torch.ops.quantized.prelu(*x, *out),
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": lambda c, x, _: torch.nn.functional.adaptive_avg_pool2d(x[0], c.attrs["output_size"]),
    "mean": lambda case, x, _: x[0].mean(case.attrs["dim"], keepdim=case.attrs["keepdim"]),
    "layer_norm": lambda c, x, out: torch.ops.quantized.layer_norm(x[0], x[0].shape[1:], *x[1:], c.attrs["eps"], *out),
    "quantize": lambda c, x, out: torch.quantize_per_tensor(x[0], *out, QDTYPES[c.out.dtype]),
    "dequantize": lambda _, x, __: x[0].dequantize(),
}


CASES = 300
"""A family and engine."""
FAMILIES = [name for name in MAKERS if name != "conv2d_add"]
PICTURES = {"conv1d", "conv2d", "conv2d_grouped", "conv2d_depthwise", "cat", "max_pool2d", "avg_pool2d"}
PICTURES |= {"adaptive_avg_pool2d", "conv2d_add"}
"""Families that are given in NHWC, as quantized convolutions leave their outputs."""
EXACT_BITS = 8 if VNNI else 7
"""Without VNNI FBGEMM multiplies by ``vpmaddubsw``, which saturates with activations of 8 bits."""


def cases(family: str, backend: str, count: int = CASES, **more: Any) -> Iterator[Int8Case]:
    rng = np.random.default_rng([ord(letter) for letter in family + backend])
    for _ in range(count):
        yield MAKERS[family](rng, backend, **more)


def peer(case: Int8Case, family: str = "") -> Array:
    return run(case, (family or case.op) in PICTURES)


def same(case: Int8Case, got: Array, expected: Array) -> None:
    """Equal in every bit; floats too."""
    assert got.dtype == expected.dtype, case
    assert got.shape == expected.shape, case
    bits = f"u{got.itemsize}"
    different = int((np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(expected).view(bits)).sum())
    assert different == 0, f"{different} of {got.size} differ: {case}"


def documented(case: Int8Case, family: str) -> bool:
    """Cases that are not exact, each with a test of its own."""
    if family == "conv2d_depthwise" and case.backend == "fbgemm":
        return fbgemm_depthwise(case)
    if family.startswith("max_pool") and case.backend == "qnnpack":
        return max(case.attrs["dilation"]) > 1 and case.attrs["padding"] != ((0, 0),) * len(case.attrs["padding"])
    return False


def fbgemm_depthwise(case: Int8Case) -> bool:
    """Whether FBGEMM has a kernel of its own for a depthwise convolution."""
    weight, attrs = case.operands[1].array, case.attrs
    kernel = weight.shape[2:]
    same_padding = attrs["padding"] == tuple((size // 2, size // 2) for size in kernel)
    plain = attrs["stride"] in ((1, 1), (2, 2)) and attrs.get("dilation", (1, 1)) == (1, 1)
    return (
        kernel in ((3, 3), (5, 5)) and len(weight) % 8 == 0 and len(weight) == attrs["groups"] and same_padding & plain
    )


def onednn_can(case: Int8Case) -> bool:
    """oneDNN crashes, or computes nonsense, where a padding is as large as the kernel, and with some dilations."""
    kernel = case.operands[1].array.shape[2:]
    fits = all(before < size for (before, _), size in zip(case.attrs["padding"], kernel, strict=True))
    return fits and max(case.attrs.get("dilation", (1,))) == 1


def scalar_dequantize(operand: Operand) -> Array:
    assert operand.qparams is not None
    return operand.qparams.dequantize(operand.array)


def scalar_quantize(x: Array, out: QParams) -> Array:
    """``at::native::quantize_val``: the zero point is added, in float32, before the rounding."""
    q = np.rint(x * (F32(1) / out.scale[0]) + F32(out.zero_point[0]))
    return np.clip(q, *out.limits).astype(out.dtype.numpy)
