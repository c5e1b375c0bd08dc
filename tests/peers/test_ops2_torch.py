"""The layers that came with ONNX against PyTorch's own, on random shapes and weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qtool.ops import get, parse_attrs  # noqa: E402

pytestmark = pytest.mark.peers

F = torch.nn.functional
SEEDS = range(4)


def run(op: str, attrs: dict, *arrays):
    spec = get(op)
    return spec.reference(parse_attrs(spec.attrs, attrs, op), *arrays)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def close(got, expected, tolerance=2e-5):
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


def reordered(array, order, hidden):
    """PyTorch's gates in ONNX's order, as numpy."""
    blocks = array.detach().numpy().reshape(len(order), hidden, *array.shape[1:])
    return blocks[list(order)].reshape(array.shape)


def weights_of(layer, order, hidden):
    """w, r, b of a one-layer module, with a direction axis."""
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)

    def stacked(name):
        return np.stack([reordered(getattr(layer, f"{name}_l0{s}"), order, hidden) for s in suffixes])

    biases = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], 1)
    return stacked("weight_ih"), stacked("weight_hh"), biases


RECURRENT = {
    "lstm": (torch.nn.LSTM, (0, 3, 1, 2), {}),
    "gru": (torch.nn.GRU, (1, 0, 2), {"linear_before_reset": True}),
    "rnn": (torch.nn.RNN, (0,), {}),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op", sorted(RECURRENT))
def test_recurrent_layers(op, both, seed):
    """Sequences of their own lengths, initial states, both layouts."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    make, order, attrs = RECURRENT[op]
    steps, batch, inputs, hidden = (int(n) for n in rng.integers(2, 6, 4))
    first = bool(seed % 2)
    layer = make(inputs, hidden, bidirectional=both, batch_first=first)
    lengths = np.sort(rng.integers(1, steps + 1, batch))[::-1].copy()
    lengths[0] = steps
    x = normal(rng, batch, steps, inputs) if first else normal(rng, steps, batch, inputs)
    directions = 2 if both else 1
    states = [normal(rng, directions, batch, hidden) for _ in range(2 if op == "lstm" else 1)]
    given = tuple(torch.from_numpy(state) for state in states)
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), torch.from_numpy(lengths), first)
    y, last = layer(packed, given if op == "lstm" else given[0])
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=first)

    starts = [state.swapaxes(0, 1) if first else state for state in states]
    attrs = {**attrs, "hidden_size": hidden, "layout": int(first), "direction": "bidirectional" if both else "forward"}
    got, *lasts = run(op, attrs, x, *weights_of(layer, order, hidden), lengths, *starts)
    joined = got.reshape(batch, steps, -1) if first else got.swapaxes(1, 2).reshape(steps, batch, -1)
    close(joined, expected)
    for mine, right in zip(lasts, last if op == "lstm" else (last,), strict=True):
        close(mine.swapaxes(0, 1) if first else mine, right)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions(rank, seed):
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 3))
    stride, dilation = (tuple(int(n) for n in rng.integers(1, 4, rank)) for _ in range(2))
    kernel = tuple(int(n) for n in rng.integers(1, 4, rank))
    padding = tuple(int(rng.integers(0, d * (k - 1) + 1)) for k, d in zip(kernel, dilation, strict=True))
    extra = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
    x = normal(rng, 2, 2 * groups, *(int(n) for n in rng.integers(3, 6, rank)))
    weight, bias = normal(rng, 2 * groups, 3, *kernel), normal(rng, 3 * groups)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    expected = function(*map(torch.from_numpy, (x, weight, bias)), stride, padding, extra, groups, dilation)
    attrs = {
        "stride": stride,
        "padding": tuple((p, p) for p in padding),
        "output_padding": extra,
        "dilation": dilation,
        "groups": groups,
    }
    (got,) = run(f"conv_transpose{rank}d", attrs, x, weight, bias)
    close(got, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_conv3d(seed):
    rng = np.random.default_rng(seed)
    x, weight, bias = normal(rng, 2, 4, 5, 4, 6), normal(rng, 6, 2, 2, 3, 2), normal(rng, 6)
    stride, padding, dilation = (1, 2, 1), (1, 0, 2), (2, 1, 1)
    expected = F.conv3d(*map(torch.from_numpy, (x, weight, bias)), stride, padding, dilation, 2)
    attrs = {"stride": stride, "padding": tuple((p, p) for p in padding), "dilation": dilation, "groups": 2}
    close(run("conv3d", attrs, x, weight, bias)[0], expected)


@pytest.mark.parametrize("size", [(7, 5), (3, 9), (12, 2)])
@pytest.mark.parametrize(
    ("mode", "corners", "antialias"),
    [
        ("nearest", None, False),
        ("nearest-exact", None, False),
        ("bilinear", False, False),
        ("bilinear", True, False),
        ("bicubic", False, False),
        ("bicubic", True, False),
        ("bilinear", False, True),
    ],
)
def test_resize(mode, corners, antialias, size):
    x = normal(np.random.default_rng(0), 2, 3, 6, 5)
    options = {} if corners is None else {"align_corners": corners, "antialias": antialias}
    expected = F.interpolate(torch.from_numpy(x), size, mode=mode, **options)
    attrs = {"axes": (2, 3), "antialias": antialias, "exclude_outside": antialias}
    attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, "nearest")
    if corners:
        attrs["coordinate_transformation_mode"] = "align_corners"
    elif mode == "nearest":
        attrs |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif mode == "nearest-exact":
        attrs["nearest_mode"] = "round_prefer_ceil"
    else:
        attrs["coordinate_transformation_mode"] = "pytorch_half_pixel"
    close(run("resize", attrs, x, None, None, np.array(size))[0], expected)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("corners", [False, True])
def test_grid_sample(mode, padding, corners):
    rng = np.random.default_rng(3)
    x, theta = normal(rng, 2, 3, 6, 5), normal(rng, 2, 2, 3)
    grid = F.affine_grid(torch.from_numpy(theta), (2, 3, 4, 7), corners)
    close(run("affine_grid", {"align_corners": corners}, theta, np.array([2, 3, 4, 7]))[0], grid)
    expected = F.grid_sample(torch.from_numpy(x), grid, mode, padding, corners)
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    close(run("grid_sample", attrs, x, grid.numpy())[0], expected, 1e-4)


def test_norms():
    rng = np.random.default_rng(1)
    x, weight, bias = normal(rng, 2, 6, 4, 5), normal(rng, 6), normal(rng, 6)
    tx, tw, tb = map(torch.from_numpy, (x, weight, bias))
    close(run("group_norm", {"num_groups": 3}, x, weight, bias)[0], F.group_norm(tx, 3, tw, tb))
    close(run("instance_norm", {}, x, weight, bias)[0], F.instance_norm(tx, weight=tw, bias=tb))
    lrn = {"size": 3, "alpha": 0.02, "beta": 0.6, "bias": 1.5}
    close(run("lrn", lrn, x)[0], F.local_response_norm(tx, 3, 0.02, 0.6, 1.5))
    last = normal(rng, 5)
    close(run("rms_norm", {}, x, last)[0], F.rms_norm(tx, (5,), torch.from_numpy(last), 1e-5))
    close(run("lp_normalization", {"axis": 1}, x)[0], F.normalize(tx, dim=1))


def test_pools_and_shuffles():
    rng = np.random.default_rng(2)
    x = normal(rng, 2, 8, 6, 9)
    tx = torch.from_numpy(x)
    window = {"kernel_shape": (3, 2), "strides": (2, 3), "pads": (1, 0, 1, 0), "ceil_mode": True}
    y, places = run("max_pool", window, x)
    right, where = F.max_pool2d(tx, (3, 2), (2, 3), (1, 0), ceil_mode=True, return_indices=True)
    close(y, right)
    assert np.array_equal(places % 54, where.numpy())
    counted = F.avg_pool2d(tx, (3, 2), (2, 3), (1, 0), ceil_mode=True)
    close(run("average_pool", {**window, "count_include_pad": True}, x)[0], counted)
    bare = F.avg_pool2d(tx, (3, 2), (2, 3), (1, 0), ceil_mode=True, count_include_pad=False)
    close(run("average_pool", window, x)[0], bare)
    close(
        run("lp_pool", {"kernel_shape": (3, 2), "strides": (2, 3)}, np.abs(x))[0],
        F.lp_pool2d(tx.abs(), 2, (3, 2), (2, 3)),
    )
    close(run("depth_to_space", {"blocksize": 2, "mode": "CRD"}, x)[0], F.pixel_shuffle(tx, 2))
    close(run("space_to_depth", {"blocksize": 3, "mode": "CRD"}, x)[0], F.pixel_unshuffle(tx, 3))
    columns = normal(rng, 2, 12, 6)
    folded = F.fold(torch.from_numpy(columns), (5, 4), (3, 2), padding=(0, 1), stride=(2, 2))
    close(
        run("col2im", {"pads": (0, 1, 0, 1), "strides": (2, 2)}, columns, np.array([5, 4]), np.array([3, 2]))[0], folded
    )


UNARY = {
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "selu": F.selu,
    "celu": F.celu,
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "erf": torch.erf,
    "round": torch.round,
    "sign": torch.sign,
    "reciprocal": torch.reciprocal,
    "swish": F.silu,
}


@pytest.mark.parametrize("op", sorted(UNARY))
def test_functions_of_one_element(op):
    x = np.concatenate([np.linspace(-30, 30, 241), [0.5, 1.5, 2.5, -0.5]]).astype(np.float32)
    close(run(op, {}, x)[0], UNARY[op](torch.from_numpy(x)), 1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses(reduction):
    rng = np.random.default_rng(5)
    x, target, weight = normal(rng, 6, 4, 3), rng.integers(0, 4, (6, 3)), np.abs(normal(rng, 4))
    tensors = [torch.from_numpy(array) for array in (x, target, weight)]
    attrs = {"reduction": reduction, "ignore_index": 2}
    expected = F.nll_loss(*tensors, ignore_index=2, reduction=reduction)
    close(run("negative_log_likelihood_loss", attrs, x, target, weight)[0], expected)
    expected = F.cross_entropy(*tensors, ignore_index=2, reduction=reduction)
    close(run("softmax_cross_entropy_loss", attrs, x, target, weight)[0], expected)
