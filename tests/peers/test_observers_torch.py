"""Scale and zero point equal PyTorch's observers' on the same batches, to the last bit.

One exception, by intent: torch.histc adds ones in float32, so that a bin stops at 2**24 for a batch (and a thread);
qtool counts exactly.

``python tests/peers/test_observers_torch.py`` prints the golden numbers of ``observer_cases.py`` anew.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from observer_cases import BATCHES, CONFIGS, GOLDEN  # noqa: E402
from torch.ao.quantization import observer as torch_observers  # noqa: E402
from torch.ao.quantization import qconfig as torch_qconfigs  # noqa: E402

from qtool.quantize import float32  # noqa: E402
from qtool.quantize.observers import make_observer  # noqa: E402
from qtool.quantize.qparams import quant_limits  # noqa: E402
from qtool.quantize.search import squared_errors  # noqa: E402
from qtool.recipe.presets import PRESETS  # noqa: E402
from qtool.recipe.schema import ObserverConfig, QDType, Scheme  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
torch.set_num_threads(1)

TORCH = {
    "min_max": torch_observers.MinMaxObserver,
    "moving_average_min_max": torch_observers.MovingAverageMinMaxObserver,
    "per_channel_min_max": torch_observers.PerChannelMinMaxObserver,
    "moving_average_per_channel_min_max": torch_observers.MovingAveragePerChannelMinMaxObserver,
    "histogram": torch_observers.HistogramObserver,
}
PER_TENSOR = (Scheme.PER_TENSOR_AFFINE, Scheme.PER_TENSOR_SYMMETRIC)
PER_CHANNEL = (Scheme.PER_CHANNEL_AFFINE, Scheme.PER_CHANNEL_SYMMETRIC)


def torch_observer(config: ObserverConfig, axis: int = 0):
    kwargs = {"ch_axis": axis} if config.scheme.per_channel else {}
    return TORCH[config.observer](
        dtype=getattr(torch, config.dtype.value),
        qscheme=getattr(torch, config.scheme.value),
        reduce_range=config.reduce_range,
        quant_min=config.quant_min,
        quant_max=config.quant_max,
        eps=config.eps,
        **kwargs,
        **config.options,
    )


def assert_equal(config: ObserverConfig, batches, axis: int = 0) -> None:
    ours, theirs = make_observer(config, axis), torch_observer(config, axis)
    for x in batches:
        ours.observe(x)
        theirs(torch.from_numpy(x))
    scale, zero_point = theirs.calculate_qparams()
    found = ours.qparams()
    np.testing.assert_array_equal(found.scale, scale.numpy(), err_msg=str(config))
    np.testing.assert_array_equal(found.zero_point, zero_point.numpy(), err_msg=str(config))


KINDS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "relu": lambda rng, n: np.maximum(rng.normal(size=n), 0),
    "uniform": lambda rng, n: rng.random(n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "negative": lambda rng, n: -np.abs(rng.normal(size=n)),
    "narrow and far": lambda rng, n: 1000 + rng.normal(size=n) * 1e-2,
    "constant": lambda rng, n: np.full(n, rng.normal()),
    "two peaks": lambda rng, n: np.where(rng.random(n) < 0.5, 0, 50) + rng.normal(size=n),
    "few values": lambda rng, n: rng.integers(0, 3, n) * 1.0,
    "zeros": lambda rng, n: np.zeros(n),  # noqa: ARG005
}


def random_batches(kind: str, seed: int) -> list[np.ndarray]:
    """One to five batches of one distribution at any magnitude; most widen the range, some do not, some are odd."""
    rng = np.random.default_rng([list(KINDS).index(kind), seed])
    magnitude = np.float32(10 ** rng.uniform(-8, 8))
    base = KINDS[kind](rng, int(rng.integers(1, 20000))).astype(np.float32) * magnitude
    grows = rng.random() < 0.6
    batches = []
    for k in range(int(rng.integers(1, 6))):
        x = base * np.float32(1 + rng.random() * grows * k)
        if rng.random() < 0.3:
            x = rng.permutation(x)[: max(1, x.size // 7)]
        if rng.random() < 0.1:
            x = KINDS[str(rng.choice(list(KINDS)))](rng, 100).astype(np.float32) * magnitude
        batches.append(x)
    return batches


def settings(seed: int, schemes) -> list[dict]:
    """A few of the combinations of scheme, type and limits, other ones with each seed."""
    ranges = [{}, {"reduce_range": True}, {"eps": 2.0**-12}]
    limits = {QDType.QUINT8: (0, 127), QDType.QINT8: (-127, 127)}
    every = [{"scheme": s, "dtype": d, **r} for s in schemes for d in QDType for r in ranges]
    every += [
        {"scheme": s, "dtype": d, "quant_min": q[0], "quant_max": q[1]} for s in schemes for d, q in limits.items()
    ]
    valid = [e for e in every if not (e["scheme"].symmetric and e["dtype"] is QDType.QUINT8 and e.get("reduce_range"))]
    return valid[seed % 3 :: 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_min_max_family_per_tensor(kind: str, seed: int) -> None:
    batches = random_batches(kind, seed)
    for setting in settings(seed, PER_TENSOR):
        assert_equal(ObserverConfig("min_max", **setting), batches)
        constant = {"averaging_constant": (0.01, 0.3, 1.0)[seed % 3]}
        assert_equal(ObserverConfig("moving_average_min_max", **setting, options=constant), batches)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_min_max_family_per_channel(kind: str, axis: int) -> None:
    shape = [6, 5, 7, 3]
    rng = np.random.default_rng(axis)
    batches = [KINDS[kind](rng, int(np.prod(shape))).reshape(shape).astype(np.float32) * (k + 1) for k in range(3)]
    batches[1][:, 0] = 0
    for setting in settings(axis, PER_CHANNEL):
        assert_equal(ObserverConfig("per_channel_min_max", **setting), batches, axis)
        options = {"averaging_constant": 0.01}
        assert_equal(ObserverConfig("moving_average_per_channel_min_max", **setting, options=options), batches, axis)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_histogram(kind: str, seed: int) -> None:
    batches = random_batches(kind, 100 + seed)
    for setting in settings(seed, PER_TENSOR)[seed % 2 :: 3]:
        assert_equal(ObserverConfig("histogram", **setting), batches)


@pytest.mark.parametrize("bins", [100, 512, 1000, 3000])
def test_histogram_with_other_numbers_of_bins(bins: int) -> None:
    config = ObserverConfig("histogram", options={"bins": bins})
    ours, theirs = make_observer(config), torch_observer(config)
    for x in random_batches("two peaks", bins):
        ours.observe(x)
        theirs(torch.from_numpy(x))
    np.testing.assert_array_equal(ours.qparams().scale, theirs.calculate_qparams()[0].numpy())


def test_histogram_over_many_growing_batches() -> None:
    """A hundred re-binnings in a row: the float32 weights are fractions by then, and still the same."""
    rng = np.random.default_rng(5)
    config = ObserverConfig("histogram", reduce_range=True)
    ours, theirs = make_observer(config), torch_observer(config)
    for k in range(100):
        x = (rng.normal(size=500) * (1 + k / 20) + 0.3).astype(np.float32)
        ours.observe(x)
        theirs(torch.from_numpy(x))
    np.testing.assert_array_equal(ours._weights, theirs.histogram.numpy())
    np.testing.assert_array_equal(ours.qparams().scale, theirs.calculate_qparams()[0].numpy())


def test_counts_beyond_what_float32_can_count() -> None:
    """The one difference: torch.histc stops at 2**24 a bin. qtool's count is exact before it becomes float32."""
    count = 2**24 + 1000
    x = np.full(count, 0.25, np.float32)
    x[:2] = 0.0, 1.0
    theirs = torch.histc(torch.from_numpy(x), 4, 0, 1).numpy()
    ours = float32.histogram(x, 4, np.float32(0), np.float32(1))
    assert theirs.tolist() == [1.0, 2.0**24, 0.0, 1.0]
    assert ours.tolist() == [1, count - 2, 0, 1]


@pytest.mark.parametrize("bins", [64, 100, 2048, 3001])
def test_bins_of_histc(bins: int) -> None:
    rng = np.random.default_rng(bins)
    for _ in range(20):
        x = (rng.normal(size=30000) * 10 ** rng.uniform(-6, 6) + rng.normal()).astype(np.float32)
        low, high = x.min(), x.max()
        theirs = torch.histc(torch.from_numpy(x), bins, min=float(low), max=float(high)).numpy()
        np.testing.assert_array_equal(float32.histogram(x, bins, low, high), theirs)


@pytest.mark.parametrize("size", [8, 9, 31, 64, 100, 1000, 2048, 3001, 32000])
def test_order_of_sums(size: int) -> None:
    x = (np.random.default_rng(size).random((20, size)) ** 4 * 1e6).astype(np.float32)
    np.testing.assert_array_equal(float32.total(x), [torch.from_numpy(row).sum().item() for row in x])


@pytest.mark.parametrize("count", [2, 3, 65, 2049, 32769])
def test_linspace(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        low, high = np.sort((rng.normal(size=2) * 10 ** rng.uniform(-3, 3)).astype(np.float32))
        np.testing.assert_array_equal(
            float32.linspace(low, high, count), torch.linspace(float(low), float(high), count)
        )


def test_errors_of_the_search() -> None:
    """The errors that are compared, not only the range they lead to."""
    rng = np.random.default_rng(9)
    observer = torch_observers.HistogramObserver()
    observer(torch.from_numpy(rng.standard_t(4, 50000).astype(np.float32)))
    starts, ends = rng.integers(0, 900, 40), rng.integers(1000, 2048, 40)
    reach = observer.max_val.item() - observer.min_val.item()
    ours = squared_errors(observer.histogram.numpy(), reach, starts, ends)
    theirs = [observer._compute_quantization_error(int(s), int(e)) for s, e in zip(starts, ends, strict=True)]
    np.testing.assert_array_equal(ours, np.array(theirs, np.float32))


def torch_preset(source: str):
    name, _, argument = source.partition("('")
    found = getattr(torch_qconfigs, name)
    return found(argument.removesuffix("')")) if argument else found


def differences(ours: ObserverConfig, factory) -> list[str]:
    """What PyTorch's factory makes other than the configuration; of a fake quantizer, its observer."""
    theirs = factory()
    theirs = getattr(theirs, "activation_post_process", theirs)
    if ours.observer == "placeholder":
        same = isinstance(theirs, torch_observers.PlaceholderObserver) and theirs.is_dynamic
        return [] if same and str(theirs.dtype) == f"torch.{ours.dtype.value}" else ["placeholder"]
    limits = quant_limits(ours)
    pairs = {
        "class": (TORCH[ours.observer], type(theirs)),
        "dtype": (f"torch.{ours.dtype.value}", str(theirs.dtype)),
        "scheme": (f"torch.{ours.scheme.value}", str(theirs.qscheme)),
        "limits": (limits, (theirs.quant_min, theirs.quant_max)),
        "eps": (ours.eps, theirs.eps.item()),
        "constant": (ours.options.get("averaging_constant", 0.01), getattr(theirs, "averaging_constant", 0.01)),
        "axis": (0, getattr(theirs, "ch_axis", 0)),
    }
    return [f"{key}: {a} is not {b}" for key, (a, b) in pairs.items() if a != b]


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.source])
def test_presets(name: str) -> None:
    preset = PRESETS[name]
    theirs = torch_preset(preset.source)
    if preset.qconfig.embedding_bits:  # what is PyTorch's here are the rows of embeddings
        weight = theirs.weight()
        assert weight.qscheme == torch.per_channel_affine_float_qparams
        assert weight.dtype == {8: torch.quint8, 4: torch.quint4x2}[preset.qconfig.embedding_bits]
        return
    assert differences(preset.qconfig.activation, theirs.activation) == []
    assert differences(preset.qconfig.weight, theirs.weight) == []


def test_every_backend_of_torch_has_a_preset() -> None:
    source = inspect.getsource(torch_qconfigs.get_default_qconfig)
    assert 'supported_backends = ["fbgemm", "x86", "qnnpack", "onednn"]' in source
    assert {"fbgemm", "x86", "qnnpack", "onednn"} <= set(PRESETS)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g.config}, {g.batches}")
def test_golden_numbers_are_those_of_torch(golden) -> None:
    assert live(golden.config, golden.batches) == golden


def live(config: str, batches: str):
    observer = torch_observer(CONFIGS[config])
    for x in BATCHES[batches]:
        observer(torch.from_numpy(x))
    scale, zero_point = observer.calculate_qparams()
    return dataclasses.replace(
        GOLDEN[0], config=config, batches=batches, scale=scale.item(), zero_point=zero_point.item()
    )


if __name__ == "__main__":
    for config in CONFIGS:
        for batches in BATCHES:
            print(f"    {live(config, batches)},")  # noqa: T201
