"""Where PyTorch's quantized operators differ from the int8 definitions, and from themselves: from one engine, memory
layout or end of an array to the next. Each difference is held by the formula that PyTorch follows there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cpu import HAS_VNNI

torch = pytest.importorskip("torch")

import int8_cases  # noqa: E402
import int8_torch  # noqa: E402
from int8_cases import F32, Int8Case, evaluate  # noqa: E402
from int8_torch import CASES, EXACT_BITS, cases, documented, fbgemm_depthwise, onednn_can, peer, same  # noqa: E402

from qtool.engine import int8, requantize, tables  # noqa: E402
from qtool.engine.requantize import Arithmetic  # noqa: E402
from qtool.ir import Array, DType, QParams  # noqa: E402
from qtool.ops import attrs_of, pool  # noqa: E402

pytestmark = pytest.mark.peers
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


# ---- what is not exact: FBGEMM -----------------------------------------------------------------------------------


def saturating_depthwise(case: Int8Case) -> Array:
    """As the definition, but products are added in pairs of neighbouring taps, cut to int16 (``vpmaddubsw``)."""
    x, weight, bias = case.operands
    before, step, kernel = case.attrs["padding"][0][0], case.attrs["stride"][0], weight.array.shape[-1]
    zero = int(x.qparams.zero_point[0])
    widths = ((0, 0), (0, 0), (before, before), (before, before))
    padded = np.pad(x.array.astype(np.int64), widths, constant_values=zero)
    view = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::step, ::step]
    taps = view.reshape(*view.shape[:4], -1)
    flat = weight.array.astype(np.int64).reshape(len(weight.array), 1, 1, -1)
    products = np.concatenate([taps * flat, np.zeros_like(taps[..., :1])], axis=-1)  # 9 or 25 taps: one is alone
    pairs = np.clip(products[..., 0::2] + products[..., 1::2], -(2**15), 2**15 - 1)
    weight_zero = np.broadcast_to(weight.qparams.zero_point, len(flat)).astype(np.int64).reshape(-1, 1, 1)
    acc = pairs.sum(axis=-1) - zero * flat.sum(axis=-1) - weight_zero * (taps - zero).sum(axis=-1)
    limits = requantize.output_limits(case.out, case.attrs["activation"], case.attrs.get("clamp"))
    operands = requantize.AccumulateOperands(x.qparams, weight.qparams, case.out, None if bias is None else bias.array)
    params = requantize.accumulate(Arithmetic.FLOAT_BIAS, len(flat), operands, limits)
    return int8.stored(int8.finish(acc.astype(np.float64), params, 1, None), case.out)


def test_fbgemm_depthwise_saturates_with_8_bits_and_is_exact_with_7() -> None:
    fast = [case for case in cases("conv2d_depthwise", "fbgemm") if fbgemm_depthwise(case)]
    assert len(fast) > CASES / 4
    for case in fast:
        same(case, saturating_depthwise(case), peer(case))
    assert any((evaluate(case) != peer(case)).any() for case in fast)
    for case in cases("conv2d_depthwise", "fbgemm", bits=7):
        same(case, evaluate(case), peer(case))


# ---- what is not exact: the ends of arrays -----------------------------------------------------------------------


def body(size: int, lanes: int) -> int:
    """How many elements PyTorch's vector code takes; the rest goes through its scalar loop."""
    return size // lanes * lanes if int8_torch.AVX2 else 0


def scalar(case: Int8Case) -> Array:
    """The scalar loops: scale * (q - zero point), the function, and quantize_val, which adds the zero point first."""
    attrs, values = case.attrs, [int8_torch.scalar_dequantize(operand) for operand in case.operands]
    if case.op == "add":
        y = values[0] + values[1]
        y = np.maximum(y, F32(0)) if attrs["activation"] == "relu" else y
    else:
        y = tables.FUNCTIONS[case.op](SimpleNamespace(**attrs), values[0])
    return int8_torch.scalar_quantize(y, case.out)


@pytest.mark.parametrize("op", ["add", "leaky_relu", "elu", "hardswish", "hardsigmoid", "sigmoid", "tanh"])
def test_the_ends_of_arrays_go_through_a_scalar_loop(op: str) -> None:
    """Elements beyond a multiple of 64 differ in ties, and by one."""
    for case in cases(op, "fbgemm", tail=True):
        got, expected = evaluate(case).ravel(), peer(case).ravel()
        split = body(got.size, 64)
        same(case, got[:split], expected[:split])
        same(case, scalar(case).ravel()[split:], expected[split:])
        assert np.abs(got.astype(int) - expected).max() <= 1


def test_layer_norm_ends_go_through_a_scalar_loop() -> None:
    differ = 0
    for case in cases("layer_norm", "fbgemm", multiple=7):
        got, expected = evaluate(case), peer(case)
        split = body(got.shape[1], 32)
        same(case, got[:, :split], expected[:, :split])
        assert np.abs(got.astype(int) - expected).max(initial=0) <= 1
        differ += int((got != expected).sum())
    assert differ <= 3  # the last columns differ in ties, which are rare here


# ---- what is not exact: memory layouts ---------------------------------------------------------------------------


def pool_sums(case: Int8Case) -> tuple[Array, Array]:
    """The sum less the zero points, and the number that it is divided by, of every window of an average."""
    x, attrs = case.operands[0], attrs_of(int8_cases.graph_of(case).nodes[0])
    centred = x.array.astype(np.float64) - float(x.qparams.zero_point[0])
    if case.op == "avg_pool2d":
        return pool.window_sums(attrs, centred), pool.window_divisors(attrs, centred.shape[2:])
    sums = pool.adaptive_pool(centred, attrs.output_size, np.sum)
    return sums, pool.adaptive_counts(centred.shape[2:], attrs.output_size)


def rounded_inside(case: Int8Case) -> Array:
    """nearbyint(sum * (1 / n) + zero point), every operation rounded to float32."""
    sums, count = pool_sums(case)
    q = np.rint(sums.astype(F32) * (F32(1) / count.astype(F32)) + F32(case.out.zero_point[0]))
    return np.clip(q, *case.out.limits).astype(case.out.dtype.numpy)


@pytest.mark.parametrize("family", ["avg_pool2d", "adaptive_avg_pool2d"])
def test_the_last_channels_of_a_pool_go_through_a_scalar_loop(family: str) -> None:
    """They add the zero point before rounding and with a rounding of its own, so that ties may differ by one."""
    lanes = 16 if int8_torch.AVX512 and family == "avg_pool2d" else 8
    for case in cases(family, "fbgemm", channels=5):
        got, expected = evaluate(case), peer(case)
        split = body(got.shape[1], lanes)
        same(case, got[:, :split], expected[:, :split])
        same(case, rounded_inside(case)[:, split:], expected[:, split:])
        assert np.abs(got.astype(int) - expected).max() <= 1


def test_pools_in_nchw_round_otherwise() -> None:
    """Average pools as their scalar loop in NHWC; adaptive ones by sum * (1 / h / w), zero points and all."""
    for case in cases("avg_pool2d", "fbgemm"):
        same(case, rounded_inside(case), int8_torch.run(case, nhwc=False))
    for case in cases("adaptive_avg_pool2d", "fbgemm"):
        sums, count = pool_sums(case)
        stored = (sums + count * float(case.out.zero_point[0])).astype(F32)
        expected = int8_torch.run(case, nhwc=False)
        heights, widths = (_bin_sizes(case, axis) for axis in (0, 1))
        factor = (F32(1) / heights)[:, None] / widths
        same(case, np.rint(stored * factor).astype(np.uint8), expected)
        assert np.abs(evaluate(case).astype(int) - expected).max() <= 1


def _bin_sizes(case: Int8Case, axis: int) -> Array:
    size, bins = case.operands[0].array.shape[2 + axis], case.attrs["output_size"][axis]
    return np.array([-(-(i + 1) * size // bins) - i * size // bins for i in range(bins)], F32)


def test_the_mean_of_an_nhwc_picture_is_taken_in_float() -> None:
    """So that ties fall as the float sum's rounding errors will."""
    for case in cases("mean", "fbgemm"):
        if case.operands[0].array.ndim == 4:
            got, expected = evaluate(case), int8_torch.run(case, nhwc=True)
            sums = case.operands[0].array.astype(np.float64).mean(case.attrs["dim"], keepdims=case.attrs["keepdim"])
            differ = got != expected
            assert (np.abs(sums[differ] % 1 - 0.5) < 1e-4).all()


def test_cat_of_other_layouts() -> None:
    """Channels of an NHWC picture beyond a multiple of 8 go through the scalar loop; in NCHW all are dequantized and
    quantized as by those operators."""
    for case in cases("cat", "fbgemm", channels=3):
        got, expected = evaluate(case), peer(case)
        nchw = [case.out.quantize(int8_torch.scalar_dequantize(operand)) for operand in case.operands]
        if not all(operand.qparams == case.out for operand in case.operands):
            same(case, np.concatenate(nchw, axis=1), int8_torch.run(case, nhwc=False))
        first = 0
        for operand in case.operands:
            last = first + operand.array.shape[1]
            split = first + body(last - first, 8)
            same(case, got[:, first:split], expected[:, first:split])
            tail = int8_torch.scalar_quantize(int8_torch.scalar_dequantize(operand), case.out)[:, split - first :]
            same(case, tail, expected[:, split:last])
            first = last


# ---- what is not exact: QNNPACK ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_qnnpack_pads_dilated_max_pools_with_the_edge(rank: int) -> None:
    """Not with nothing: a tap outside of the picture reads the nearest pixel, which may be no tap of the window."""
    family = f"max_pool{rank}d"
    padded = [case for case in cases(family, "qnnpack") if documented(case, family)]
    assert len(padded) > CASES / 8
    for case in padded:
        widths = ((0, 0), (0, 0), *case.attrs["padding"])
        x = case.operands[0]
        edges = replace(x, array=np.pad(x.array, widths, mode="edge"))
        attrs = {**case.attrs, "padding": ((0, 0),) * rank}
        same(case, evaluate(replace(case, operands=(edges,), attrs=attrs)), peer(case))
    assert any((evaluate(case) != peer(case)).any() for case in padded)


def test_qnnpack_counts_padding_in_every_average() -> None:
    """``count_include_pad=False`` is not looked at."""
    differ = 0
    for case in cases("avg_pool2d", "qnnpack"):
        without = replace(case, attrs={**case.attrs, "count_include_pad": False})
        same(case, evaluate(case), peer(without))
        differ += int((evaluate(without) != evaluate(case)).any())
    assert differ > 0


def test_qnnpack_mixes_up_clamped_nhwc_pictures() -> None:
    """The result is made in NCHW and filled in NHWC."""
    x = int8_cases.some_activation(np.random.default_rng(0), (2, 3, 4, 5))
    case = Int8Case("clamp", "qnnpack", {"low": -1.0, "high": 1.0}, (x,), x.qparams)
    got = int8_torch.run(case, nhwc=True)
    right = evaluate(case)
    assert (got != right).any()
    same(case, right.transpose(0, 2, 3, 1).reshape(right.shape), got)


def test_qnnpack_refuses_a_sum_out_of_its_scales() -> None:
    """There the definition adds in float, as the other engines do."""
    case = int8_cases.binary(np.random.default_rng(1), "qnnpack", "add")
    far = replace(case, out=replace(case.out, scale=case.operands[0].qparams.scale / F32(300)))
    with pytest.raises(RuntimeError, match="failed to create QNNPACK Add operator"):
        peer(far)
    same(far, evaluate(far), evaluate(replace(far, backend="fbgemm")))


def test_broadcast_sums_are_float_on_qnnpack() -> None:
    for index, case in enumerate(cases("add", "qnnpack", 40)):
        a, b = case.operands
        shape = (2, 4, 4, 64)
        rng = np.random.default_rng(index)
        a = replace(a, array=int8_cases.some_stored(rng, shape, a.qparams))
        b = replace(b, array=int8_cases.some_stored(rng, shape[-1:], b.qparams))
        wide = replace(case, operands=(a, b))
        same(wide, evaluate(wide), peer(wide))


# ---- what is not exact: others -----------------------------------------------------------------------------------


def test_prelu_cuts_the_slope_of_one() -> None:
    """Where 1 is beyond the weight's largest value, PyTorch multiplies positive numbers by that value instead."""
    case = next(case for case in cases("prelu", "fbgemm") if case.operands[1].array.size == 1)
    scale = np.array([0.25 / 255], np.float32)
    slope = replace(case.operands[1], qparams=QParams(scale, np.zeros(1, np.int32), DType.UINT8))
    x = replace(case.operands[0], qparams=QParams.per_tensor(0.1, 0, DType.UINT8))
    cut = replace(case, operands=(x, slope), out=x.qparams)
    assert np.array_equal(evaluate(cut), x.array)
    assert np.abs(peer(cut) - x.array * 0.25).max() <= 0.5


@pytest.mark.parametrize("family", ["add", "adaptive_avg_pool2d"])
def test_shifting_int8_activations_to_uint8_shows_in_ties(family: str) -> None:
    """Two operators round a zero point along with the rest; kernels see it plus 128."""
    differ = total = 0
    for case in cases(family, "fbgemm", dtype=DType.INT8):
        got, expected = evaluate(case), peer(case, family)
        assert np.abs(got.astype(int) - expected).max() <= 1
        differ, total = differ + int((got != expected).sum()), total + got.size
    assert differ < total / 10


def test_softmax_is_one_off_at_most() -> None:
    """PyTorch sums powers in float32; the definition in float64."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        x = int8_cases.some_activation(rng, (4, int(rng.integers(1, 50))))
        out = QParams.per_tensor(1 / 256, 0, DType.UINT8)
        case = Int8Case("softmax", "fbgemm", {"dim": 1}, (x,), out)
        torch.backends.quantized.engine = "fbgemm"
        y = torch.ops.quantized.softmax(int8_torch.quantized(x), 1, 1 / 256, 0).int_repr().numpy()
        exact = torch.softmax(torch.tensor(x.qparams.dequantize(x.array).astype(np.float64)), 1).numpy() * 256
        differ = evaluate(case) != y
        assert (np.abs(exact[differ] % 1 - 0.5) < 1e-3).all()


# ---- oneDNN ------------------------------------------------------------------------------------------------------


ONEDNN = ["linear", "conv1d", "conv2d", "conv2d_grouped", "conv2d_depthwise"]


@pytest.mark.parametrize(
    ("engine", "family"), [*itertools.product(["x86", "onednn"], ONEDNN), ("onednn", "conv2d_add")]
)
def test_onednn_rounds_alike_but_for_ties(engine: str, family: str) -> None:
    """oneDNN multiplies by the scales before it adds the bias, and adds the zero point before it rounds: one in some
    hundred thousand outputs is off by one. A residual is added before the only rounding."""
    differ = total = compared = 0
    bits = 8 if engine == "onednn" and HAS_VNNI else EXACT_BITS  # of 8 bits it saturates without VNNI
    for case in cases(family, engine, 2 * CASES, bits=bits):
        if family == "linear" or onednn_can(case):
            got, expected = evaluate(case), peer(case, family)
            assert np.abs(got.astype(int) - expected).max(initial=0) <= 1, case
            differ, total, compared = differ + int((got != expected).sum()), total + got.size, compared + 1
    assert compared > CASES / 8
    assert differ <= max(3, total / 20_000)


def test_onednn_dynamic_linear_is_close() -> None:
    """It computes in float32 in another order, and in ties may quantize an input to the other neighbour."""
    far = compared = 0
    for case in cases("linear_dynamic", "onednn"):
        x, weight, _ = case.operands
        if weight.qparams.zero_point.any() or not (HAS_VNNI or case.attrs["reduce_range"]):
            continue
        got, expected = evaluate(case), peer(case)
        step = (max(x.array.max(), 0) - min(x.array.min(), 0)) / (127 if case.attrs["reduce_range"] else 255)
        one_off = np.abs(weight.array.astype(np.float64)).sum(axis=1) * weight.qparams.scale * max(step, 6.1e-5)
        assert (np.abs(got - expected) <= one_off + 1e-5 * np.abs(expected)).all()
        far += not np.allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        compared += 1
    assert far <= compared / 50
