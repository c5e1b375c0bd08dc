"""Every row of the dynamic linear family against ``torch.ops.quantized.linear_dynamic``, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from cpu import HAS_VNNI
from kernels import kernel_rows, run_kernel

from qtool.native import Kind, abi

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Currently, qnnpack incorrectly ignores reduce_range:UserWarning"),
]
CASES = 250


def _weight(rng: np.random.Generator, outputs: int, inputs: int, per_channel: bool) -> tuple[np.ndarray, np.ndarray]:
    weight = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scale = rng.uniform(1e-4, 0.1, outputs if per_channel else 1).astype(np.float32)
    return weight, np.array(np.broadcast_to(scale, outputs))


def _torch_linear(x, weight, scale, bias, *, per_channel, reduce_range):
    """The same layer in PyTorch, on the engine that is set."""
    stored = torch.from_numpy(weight)
    if per_channel:
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        quantized = torch._make_per_channel_quantized_tensor(stored, torch.from_numpy(scale).double(), zeros, 0)
    else:
        quantized = torch._make_per_tensor_quantized_tensor(stored, float(scale[0]), 0)
    packed = torch.ops.quantized.linear_prepack(quantized, None if bias is None else torch.from_numpy(bias))
    return torch.ops.quantized.linear_dynamic(torch.from_numpy(x), packed, reduce_range).numpy()


@pytest.fixture
def engine(request):
    """Sets PyTorch's quantized engine for one test."""
    if request.param not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this PyTorch has no {request.param}")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


@pytest.mark.parametrize("row", kernel_rows("qlinear_dynamic"))
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"], indirect=True)
def test_linear_dynamic(row, engine):
    reduced = row.name.endswith("_reduced")
    if reduced and engine == "qnnpack":
        pytest.skip("QNNPACK does not reduce the range, which this kernel is for")
    torch.set_num_threads(1)
    rng = np.random.default_rng(5)
    for _ in range(CASES):
        rows, inputs, outputs = (int(rng.integers(1, top)) for top in (20, 200, 140))
        per_channel, reduce_range = (bool(bit) for bit in rng.integers(0, 2, 2))
        reduce_range = reduce_range or reduced or not HAS_VNNI  # of 8 bits FBGEMM saturates without VNNI
        x = rng.normal(size=(rows, inputs)) * 10 ** rng.uniform(-6, 3) + rng.normal() * rng.integers(0, 2)
        x, bias = x.astype(np.float32), rng.normal(size=outputs).astype(np.float32)
        weight, scale = _weight(rng, outputs, inputs, per_channel)
        args = abi.make(
            abi.LinearDynamicArgs, rows=rows, in_features=inputs, out_features=outputs,
            reduce_range=int(reduce_range and engine == "fbgemm"),  # QNNPACK ignores it
            fused=int(engine == "fbgemm"), out_min_f=-np.inf, out_max_f=np.inf,
            weight=weight, w_scale=scale, bias=bias,
        )  # fmt: skip
        got = run_kernel(row, Kind.QLINEAR_DYNAMIC, args, [x], np.empty((rows, outputs), np.float32))
        expected = _torch_linear(x, weight, scale, bias, per_channel=per_channel, reduce_range=reduce_range)
        np.testing.assert_array_equal(got, expected)
