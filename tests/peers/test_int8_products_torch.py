"""Quantized transposed convolutions against PyTorch's, bit for bit, and products of activations."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from int8_cases import evaluate  # noqa: E402
from product_cases import conv_transpose, matmul  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
CASES = 150


@pytest.fixture(autouse=True)
def _engine():
    torch.set_num_threads(1)
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


def tensor(operand):
    params = operand.qparams
    make = torch._make_per_tensor_quantized_tensor
    if params.axis is not None:
        zeros = torch.zeros(len(params.scale), dtype=torch.int64)
        scales = torch.from_numpy(params.scale).double()
        return torch._make_per_channel_quantized_tensor(torch.from_numpy(operand.array), scales, zeros, params.axis)
    return make(torch.from_numpy(operand.array), float(params.scale[0]), int(params.zero_point[0]))


def theirs(case):
    modules = torch.ao.nn.quantized
    x, weight, bias = case.operands
    groups, attrs = case.attrs["groups"], dict(case.attrs)
    attrs["padding"] = tuple(pair[0] for pair in attrs["padding"])
    cls = modules.ConvTranspose1d if case.op == "conv_transpose1d" else modules.ConvTranspose2d
    outputs = weight.array.shape[1] * groups
    module = cls(weight.array.shape[0], outputs, weight.array.shape[2:], bias=bias is not None, **attrs)
    module.set_weight_bias(tensor(weight), None if bias is None else torch.from_numpy(bias.array))
    module.scale, module.zero_point = float(case.out.scale[0]), int(case.out.zero_point[0])
    return module(tensor(x)).int_repr().numpy()


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_conv_transpose_per_tensor(engine, rank):
    torch.backends.quantized.engine = engine
    rng = np.random.default_rng(11)
    for _ in range(CASES):
        case = conv_transpose(rng, engine, rank)
        np.testing.assert_array_equal(evaluate(case), theirs(case), err_msg=str(case))


@pytest.mark.parametrize("rank", [1, 2])
def test_conv_transpose_per_channel(rank):
    """Only QNNPACK has it, and without groups."""
    torch.backends.quantized.engine = "qnnpack"
    rng = np.random.default_rng(12)
    for _ in range(CASES):
        case = conv_transpose(rng, "qnnpack", rank, per_channel=True, groups=1)
        np.testing.assert_array_equal(evaluate(case), theirs(case), err_msg=str(case))


def test_matmul():
    """PyTorch sums dequantized floats: a sum half way between two steps may fall on the other side."""
    rng = np.random.default_rng(13)
    differ = total = 0
    for _ in range(CASES):
        case = matmul(rng, "fbgemm")
        a, b = map(tensor, case.operands)
        out = torch.ops.quantized.matmul(a, b, float(case.out.scale[0]), int(case.out.zero_point[0]))
        off = np.abs(evaluate(case).astype(int) - out.int_repr().numpy())
        assert off.max() <= 1
        differ, total = differ + np.count_nonzero(off), total + off.size
    assert differ <= total / 1000
