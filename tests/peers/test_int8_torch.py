"""The int8 definitions against PyTorch's quantized operators, bit by bit: what the vector code of its engines does.

Where PyTorch disagrees with itself, ``test_int8_torch_known`` has the formula.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from cpu import HAS_VNNI

torch = pytest.importorskip("torch")

import int8_torch  # noqa: E402
from int8_cases import TABLES, Int8Case, Operand, evaluate  # noqa: E402
from int8_torch import CASES, EXACT_BITS, FAMILIES, cases, documented, peer, same  # noqa: E402

from qtool.ir import DType, QParams  # noqa: E402

pytestmark = pytest.mark.peers
torch.set_num_threads(1)

ENGINES = ("fbgemm", "qnnpack")


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_bit_exact(engine: str, family: str) -> None:
    more = {"bits": EXACT_BITS} if family.startswith(("conv", "linear")) and family != "linear_dynamic" else {}
    compared = 0
    for case in cases(family, engine, **(more if engine == "fbgemm" else {})):
        if not documented(case, family) and not saturates(case):
            same(case, evaluate(case), peer(case, family))
            compared += 1
    assert compared >= CASES / 4


def saturates(case: Int8Case) -> bool:
    """FBGEMM's kernel for activations of 8 bits, on a CPU without VNNI."""
    return case.op == "linear_dynamic" and case.backend == "fbgemm" and not (HAS_VNNI or case.attrs["reduce_range"])


def test_there_are_enough_cases() -> None:
    assert len(FAMILIES) * CASES >= 2000


@pytest.mark.parametrize("op", ["mul", "prelu", *TABLES[:4]])
def test_integer_arithmetic_has_no_ends(op: str) -> None:
    for case in cases(op, "fbgemm", tail=True):
        same(case, evaluate(case), peer(case))


@pytest.mark.parametrize("op", ["add", "mul", "sigmoid", "tanh", "hardswish", "relu6", "quantize"])
def test_qnnpack_has_no_ends(op: str) -> None:
    more = {} if op == "quantize" else {"tail": True}
    for case in cases(op, "qnnpack", **more):
        same(case, evaluate(case), peer(case))


@pytest.mark.parametrize(
    "family", [*TABLES, "mul", "quantize", "dequantize", "cat", "layer_norm", "avg_pool2d", "mean"]
)
def test_bit_exact_with_int8_activations(family: str) -> None:
    for case in cases(family, "fbgemm", 60, dtype=DType.INT8):
        same(case, evaluate(case), peer(case, family))


def test_quantize_per_channel() -> None:
    """Product and sum are rounded each, where ``quantize_per_tensor`` rounds them once."""
    rng = np.random.default_rng(2)
    for axis, dtype in itertools.product((0, 1), (DType.INT8, DType.UINT8)):
        for _ in range(40):
            shape = (5, 7, 3)
            info = np.iinfo(dtype.value)
            scale = rng.uniform(0.01, 0.1, shape[axis]).astype(np.float32)
            qparams = QParams(scale, rng.integers(info.min, info.max, shape[axis]).astype(np.int32), dtype, axis)
            column = [-1 if a == axis else 1 for a in range(3)]
            x = ((np.rint(rng.normal(0, 40, shape)) + 0.5) * scale.reshape(column)).astype(np.float32)
            case = Int8Case("quantize", "fbgemm", {}, (Operand(x),), qparams)
            scales, zeros = torch.tensor(scale), torch.tensor(qparams.zero_point)
            y = torch.quantize_per_channel(torch.tensor(x), scales, zeros, axis, int8_torch.QDTYPES[dtype])
            same(case, evaluate(case), y.int_repr().numpy())
            stored = Operand(y.int_repr().numpy(), qparams)
            back = Int8Case("dequantize", "fbgemm", {}, (stored,), None)
            same(back, evaluate(back), y.dequantize().numpy())
