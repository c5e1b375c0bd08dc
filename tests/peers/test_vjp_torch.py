"""Every vector-Jacobian product against torch.autograd, at random points and at kinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from op_cases import CASES, STRATEGIES, Case, unary
from op_onnx_cases import ONNX_CASES
from vjp_cases import DOMAINS, MORE

torch = pytest.importorskip("torch")

from test_ops2_torch import RECURRENT, UNARY  # noqa: E402
from test_ops_torch import PEERS, TOLERANCES  # noqa: E402

from qtool.ops import get, parse_attrs  # noqa: E402
from qtool.ops.registry import VjpCall  # noqa: E402

pytestmark = pytest.mark.peers

F = torch.nn.functional
TOLERANCE = 2e-5
FIXED = {
    ("batch_norm", 1),
    ("batch_norm", 2),
    ("negative_log_likelihood_loss", 2),
    ("softmax_cross_entropy_loss", 2),
}
"""Inputs by which torch does not differentiate."""
SAME_NAME = (
    *(torch.abs, torch.acos, torch.acosh, torch.asin, torch.asinh, torch.atan, torch.atanh, torch.ceil, torch.cos),
    *(torch.cosh, torch.exp, torch.floor, torch.log, torch.neg, torch.sin, torch.sinh, torch.sqrt, torch.tan),
)
ONNX_PEERS: dict[str, Callable[..., Any]] = {
    **{op: lambda _, x, f=function: f(x) for op, function in UNARY.items()},
    **{name: lambda _, x, f=function: f(x) for name, function in ((f.__name__, f) for f in SAME_NAME)},
    "celu": lambda a, x: F.celu(x, a.alpha),
    "thresholded_relu": lambda a, x: F.threshold(x, a.alpha, 0.0),
    "shrink": lambda a, x: F.hardshrink(x, a.lambd),
    "hard_sigmoid": lambda a, x: F.hardtanh(a.alpha * x + a.beta, 0, 1),
    "swish": lambda a, x: x * torch.sigmoid(a.alpha * x),
    "log_softmax": lambda a, x: F.log_softmax(x, a.axis),
    "pow": lambda _, a, b: torch.pow(a, b),
    "mod": lambda a, x, y: torch.fmod(x, y) if a.fmod else torch.remainder(x, y),
    "swiglu": lambda a, x, y: x * torch.sigmoid(a.alpha * x) * y,
    "sum_of": lambda _, *xs: sum(xs),
    "mean_of": lambda _, *xs: sum(xs) / len(xs),
    "where": lambda _, c, x, y: torch.where(c, x, y),
    "clip": lambda _, x, low=None, high=None: x if low is high is None else torch.clamp(x, low, high),
    "prelu_broadcast": lambda _, x, slope: torch.where(x > 0, x, x * slope),
    "cast": lambda a, x: x.to(getattr(torch, a.to)),
    "expand": lambda _, x, shape: torch.broadcast_to(x, torch.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "tile": lambda _, x, repeats: torch.tile(x, repeats.tolist()),
    "reshape_to": lambda _, x, __: x.reshape(x.shape[0], -1, 2),
    "trilu": lambda a, x, k: (torch.triu if a.upper else torch.tril)(x, int(k)),
    "gather": lambda a, x, i: torch.index_select(x, a.axis, i.reshape(-1) % x.shape[a.axis]).reshape(
        *x.shape[: a.axis % x.ndim], *i.shape, *x.shape[a.axis % x.ndim + 1 :]
    ),
    "gather_elements": lambda a, x, i: torch.gather(x, a.axis, i % x.shape[a.axis]),
    "scatter_elements": lambda a, x, i, u: (x.scatter_add if a.reduction == "add" else x.scatter)(
        a.axis, i % x.shape[a.axis], u
    ),
    "scatter_nd": lambda a, x, i, u: torch.index_put(x, (i[:, 0],), u, a.reduction == "add"),
    "top_k": lambda a, x, k: torch.topk(x, int(k), a.axis, a.largest)[0],
    "gemm": lambda a, x, y, c=None: (
        a.alpha * (x.T if a.transA else x) @ (y.T if a.transB else y) + (0 if c is None else a.beta * c)
    ),
    "einsum": lambda a, *xs: torch.einsum(a.equation, *xs),
    "det": lambda _, x: torch.linalg.det(x),
    "conv3d": PEERS["conv2d"],
    "instance_norm": lambda a, x, w, b: F.instance_norm(x, weight=w, bias=b, eps=a.epsilon),
    "group_norm": lambda a, x, w, b: F.group_norm(x, a.num_groups, w, b, a.epsilon),
    "rms_norm": lambda a, x, w: F.rms_norm(x, x.shape[a.axis :], None, a.epsilon) * w,
    "lrn": lambda a, x: F.local_response_norm(x, a.size, a.alpha, a.beta, a.bias) if a.size % 2 else None,
    "lp_normalization": lambda a, x: F.normalize(x, a.p, a.axis),
    "negative_log_likelihood_loss": lambda a, x, t, w=None: _loss(F.nll_loss, a, x, t, w),
    "softmax_cross_entropy_loss": lambda a, x, t, w=None: (
        _loss(F.cross_entropy, a, x, t, w),
        F.log_softmax(x, 1),
    ),
    "reduce_max": lambda a, x, i=None: torch.amax(x, _axes(a, i), a.keepdims),
    "reduce_min": lambda a, x, i=None: torch.amin(x, _axes(a, i), a.keepdims),
    "reduce_sum": lambda a, x, i=None: torch.sum(x, _axes(a, i), a.keepdims),
    "reduce_mean": lambda a, x, i=None: torch.mean(x, _axes(a, i), a.keepdims),
    "reduce_l1": lambda a, x, i=None: torch.linalg.vector_norm(x, 1, _axes(a, i), a.keepdims),
    "reduce_l2": lambda a, x, i=None: torch.linalg.vector_norm(x, 2, _axes(a, i), a.keepdims),
    "reduce_sum_square": lambda a, x, i=None: torch.sum(x * x, _axes(a, i), a.keepdims),
    "reduce_log_sum": lambda a, x, i=None: torch.log(torch.sum(x, _axes(a, i), a.keepdims)),
    "reduce_log_sum_exp": lambda a, x, i=None: torch.logsumexp(x, _axes(a, i), a.keepdims),
    "cum_sum": lambda a, x, axis: _cumulative(torch.cumsum, 0.0, a, x, int(axis)),
    "cum_prod": lambda a, x, axis: _cumulative(torch.cumprod, 1.0, a, x, int(axis)),
    "global_lp_pool": lambda a, x: torch.linalg.vector_norm(x, a.p, tuple(range(2, x.ndim)), True),
    "depth_to_space": lambda a, x: F.pixel_shuffle(x, a.blocksize) if a.mode == "CRD" else None,
    "space_to_depth": lambda a, x: F.pixel_unshuffle(x, a.blocksize) if a.mode == "CRD" else None,
    "grid_sample": lambda a, x, grid: F.grid_sample(
        x, grid, {"linear": "bilinear", "cubic": "bicubic"}.get(a.mode, a.mode), a.padding_mode, a.align_corners
    ),
    "affine_grid": lambda a, theta, size: (
        None if 1 in size[2:] else F.affine_grid(theta, size.tolist(), a.align_corners)
    ),
    "max": lambda _, *xs: _folded(torch.maximum, xs),
    "min": lambda _, *xs: _folded(torch.minimum, xs),
}
"""(attributes, tensors ...) -> what torch makes of them; None where it has no such option."""


def _loss(function, attrs, x, target, weight):
    ignored = -100 if attrs.ignore_index is None else attrs.ignore_index
    return function(x, target, weight, ignore_index=ignored, reduction=attrs.reduction)


def _axes(attrs, axes):
    found = tuple(attrs.axes or ()) if axes is None else tuple(axes.tolist())
    return found or None


def _folded(function, tensors):
    result = tensors[0]
    for tensor in tensors[1:]:
        result = function(result, tensor)
    return result


def _cumulative(function, neutral, attrs, x, axis):
    x = torch.flip(x, (axis,)) if attrs.reverse else x
    if attrs.exclusive:
        one = torch.full_like(x.narrow(axis, 0, 1), neutral)
        x = torch.cat([one, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    y = function(x, axis)
    return torch.flip(y, (axis,)) if attrs.reverse else y


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agrees(op: str, attrs: dict, arrays, peer, seed: int = 0) -> bool:
    """Holds that both give the same derivatives of the same weighted sum of outputs; False where torch cannot."""
    spec, rng = get(op), np.random.default_rng(seed)
    parsed = parse_attrs(spec.attrs, attrs, op)
    tensors = [None if a is None else torch.from_numpy(a.copy()) for a in arrays]
    for position, tensor in enumerate(tensors):
        if tensor is not None and tensor.is_floating_point() and (op, position) not in FIXED:
            tensor.requires_grad_()
    theirs = peer(parsed, *tensors)
    if theirs is None:
        return False
    theirs = theirs if isinstance(theirs, (tuple, list)) else (theirs,)
    grads = [rng.standard_normal(tuple(y.shape)).astype(y.detach().numpy().dtype) for y in theirs]
    pairs = [(y, torch.from_numpy(g)) for y, g in zip(theirs, grads, strict=True) if y.requires_grad]
    if pairs:
        torch.autograd.backward(*map(list, zip(*pairs, strict=True)))
    outputs = spec.reference(parsed, *arrays)
    padded = (*grads, *[None] * (len(outputs) - len(grads)))
    needed = tuple(t is not None and t.requires_grad for t in tensors)
    found = spec.vjp(VjpCall(parsed, tuple(arrays), outputs, padded, needed))
    tolerance = max(TOLERANCE, TOLERANCES.get(op, 0))
    for position, (mine, tensor) in enumerate(zip(found, tensors, strict=True)):
        if not needed[position]:
            assert mine is None
        elif tensor.grad is None:  # cut off from the outputs
            assert mine is None or not mine.any()
        else:
            right = tensor.grad.numpy()
            limit = tolerance * max(1.0, float(np.abs(right[np.isfinite(right)]).max(initial=0)))
            np.testing.assert_allclose(mine, right, rtol=tolerance, atol=limit, err_msg=f"{op} {attrs} {position}")
    return True


@pytest.mark.parametrize("op", sorted(op for op in PEERS if get(op).vjp is not None))
def test_random_points(op):
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CASES[op])
    def check(case: Case):
        agrees(op, case.attrs, case.arrays, PEERS[op])

    check()


@pytest.mark.parametrize("op", sorted(op for op in PEERS if get(op).vjp is not None))
def test_whole_numbers(op):
    """Ties in maxima, zeros and limits of activations: whole numbers are full of them."""

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CASES[op])
    def check(case: Case):
        arrays = [np.asarray(np.rint(2 * a)) if a is not None and a.dtype.kind == "f" else a for a in case.arrays]
        if op == "batch_norm":
            arrays[2] = np.abs(arrays[2]) + 1
        if op == "div":
            arrays[1] = np.asarray(arrays[1] + np.float32(0.5))
        agrees(op, case.attrs, arrays, PEERS[op])

    check()


KINKS = np.array([-6, -3, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2.5, 3, 6], np.float32)
ATTRS: dict[str, list[dict]] = {
    "hardtanh": [{}, {"low": -2.0, "high": 0.5}, {"low": 0, "high": 6}],
    "clamp": [{"low": -0.5, "high": 3.4028234663852886e38}, {"low": -1.0, "high": 1.5}],
    "elu": [{}, {"alpha": 0.3}],
    "leaky_relu": [{}, {"negative_slope": -0.5}],
}


@pytest.mark.parametrize("op", sorted(op for op in STRATEGIES[unary].split() if get(op).vjp is not None))
def test_kinks_of_activations(op):
    for attrs in ATTRS.get(op, [{}]):
        assert agrees(op, attrs, [KINKS], PEERS[op])


@pytest.mark.parametrize("op", sorted(ONNX_PEERS))
def test_listed_points(op):
    place = DOMAINS.get(op, lambda x, _: x)
    count = 0
    for attrs, *arrays in (*ONNX_CASES.get(op, []), *MORE.get(op, [])):
        if any(a is not None and a.dtype.kind == "f" for a in arrays):
            moved = [place(a, i) if a is not None and a.dtype.kind == "f" else a for i, a in enumerate(arrays)]
            moved = [None if a is None else np.asarray(a, b.dtype) for a, b in zip(moved, arrays, strict=True)]
            count += agrees(op, attrs, moved, ONNX_PEERS[op])
    assert count


WITH_KINKS = ("abs", "celu", "selu", "shrink", "thresholded_relu", "softsign", "sign", "round", "hard_sigmoid", "mish")


@pytest.mark.parametrize("op", WITH_KINKS)
def test_kinks_of_functions(op):
    assert agrees(op, {}, [KINKS], ONNX_PEERS[op])


ONES = np.array([[1, 2, 2], [0, 0, 3], [0, 0, 0]], np.float32)


@pytest.mark.parametrize("op", [f"reduce_{name}" for name in ("max", "min", "l1", "l2", "sum_square", "log_sum_exp")])
def test_ties_and_zeros_of_reductions(op):
    for attrs in ({"axes": (1,)}, {"axes": (0, 1)}, {"axes": (0,), "keepdims": False}):
        assert agrees(op, attrs, [ONES], ONNX_PEERS[op])


@pytest.mark.parametrize("axis", [0, 1])
def test_products_with_zeros(axis):
    assert agrees("reduce_prod", {"axes": (axis,)}, [ONES], lambda _, x: torch.prod(x, axis, keepdim=True))
    for attrs in ({}, {"exclusive": True}, {"reverse": True}):
        assert agrees("cum_prod", attrs, [ONES, np.array(axis)], ONNX_PEERS["cum_prod"])


def test_ties_of_several_tensors():
    a, b = np.array([1, 2, 0, 5, 3], np.float32), np.full(5, 1, np.float32)
    for op in ("max", "min"):
        assert agrees(op, {}, [a, b], ONNX_PEERS[op])
        assert agrees(op, {}, [a, b, b, a[::-1].copy()], ONNX_PEERS[op])
    for low, high in ((1, 3), (1, 1), (3, 1), (None, 3), (1, None)):
        limits = [None if n is None else np.array(n, np.float32) for n in (low, high)]
        assert agrees("clip", {}, [a, *limits], ONNX_PEERS["clip"])
    zeros, powers = np.array([0, 0, 2, 0, 1], np.float32), np.array([0, 2, 0, 0.5, 3], np.float32)
    assert agrees("pow", {}, [zeros, powers], ONNX_PEERS["pow"])
    assert agrees("prelu_broadcast", {}, [KINKS, np.array([0.25], np.float32)], lambda _, x, w: F.prelu(x, w))


def test_ties_of_pools_of_any_rank():
    x = np.random.default_rng(0).integers(0, 3, (2, 3, 6, 7)).astype(np.float32)
    window = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 1, 1, 1)}
    assert agrees("max_pool", window, [x], lambda _, t: F.max_pool2d(t, (3, 2), (2, 1), (1, 1)))
    for counted in (False, True):
        attrs = {**window, "count_include_pad": counted}
        function = lambda _, t, c=counted: F.avg_pool2d(t, (3, 2), (2, 1), (1, 1), count_include_pad=c)  # noqa: E731
        assert agrees("average_pool", attrs, [x], function)
    places = F.max_pool2d(torch.from_numpy(x[:1, :1, :, :6]), 2, return_indices=True)[1].numpy()
    unpool = lambda _, t, i: F.max_unpool2d(t, i, 2)  # noqa: E731
    assert agrees("max_unpool", {"kernel_shape": (2, 2), "strides": (2, 2)}, [x[:1, :1, :3, :3].copy(), places], unpool)


def test_statistics_of_layer_normalization():
    rng = np.random.default_rng(3)
    x, scale, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5), (5,), (5,)))

    def peer(attrs, x, scale, bias):
        mean, variance = x.mean(-1, True), x.var(-1, correction=0, keepdim=True)
        inverse = 1 / torch.sqrt(variance + attrs.epsilon)
        return (x - mean) * inverse * scale + bias, mean, inverse

    assert agrees("layer_normalization", {}, [x, scale, bias], peer)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions(rank, seed):
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 4))
    stride, dilation, kernel = (tuple(int(n) for n in rng.integers(1, 4, rank)) for _ in range(3))
    padding = tuple(int(rng.integers(0, d * (k - 1) + 1)) for k, d in zip(kernel, dilation, strict=True))
    extra = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
    shapes = ((2, 2 * groups, *rng.integers(3, 6, rank)), (2 * groups, int(rng.integers(1, 4)), *kernel))
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    bias = rng.standard_normal(weight.shape[1] * groups).astype(np.float32)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    attrs = {
        "stride": stride,
        "padding": tuple((p, p) for p in padding),
        "output_padding": extra,
        "dilation": dilation,
        "groups": groups,
    }
    peer = lambda _, x, w, b: function(x, w, b, stride, padding, extra, groups, dilation)  # noqa: E731
    assert agrees(f"conv_transpose{rank}d", attrs, [x, weight, bias], peer)


@pytest.mark.parametrize("size", [(7, 5), (3, 9), (12, 2)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "antialias"])
def test_resize(mode, size):
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)
    antialias = mode == "antialias"
    attrs: dict = {"axes": (2, 3), "antialias": antialias, "exclude_outside": antialias}
    if mode == "nearest":
        attrs |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        options = {"mode": mode}
    else:
        attrs |= {"mode": "cubic" if mode == "bicubic" else "linear"}
        options = {"mode": "bilinear" if antialias else mode, "antialias": antialias}
    peer = lambda *inputs: F.interpolate(inputs[1], size, **options)  # noqa: E731
    assert agrees("resize", attrs, [x, None, None, np.array(size)], peer)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op", sorted(RECURRENT))
def test_recurrent_layers(op, both, seed):
    """Sequences of their own lengths, initial states, both layouts: by everything that torch differentiates by."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    make, order, attrs = RECURRENT[op]
    steps, batch, inputs, hidden = (int(n) for n in rng.integers(2, 6, 4))
    first, directions, gates = bool(seed % 2), 2 if both else 1, len(order)
    layer = make(inputs, hidden, bidirectional=both, batch_first=first)
    lengths = np.sort(rng.integers(1, steps + 1, batch))[::-1].copy()
    lengths[0] = steps
    attrs = {**attrs, "hidden_size": hidden, "layout": int(first), "direction": "bidirectional" if both else "forward"}
    names = [f"{name}_l0{suffix}" for suffix in ("", "_reverse")[:directions] for name in ("weight_ih", "weight_hh")]
    assert set(names) <= dict(layer.named_parameters()).keys()

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x = normal(batch, steps, inputs) if first else normal(steps, batch, inputs)
    states = [normal(batch, directions, hidden) if first else normal(directions, batch, hidden) for _ in range(2)]
    weights = [normal(directions, gates * hidden, n) / 2 for n in (inputs, hidden)]
    bias = normal(directions, 2 * gates * hidden)
    inverse = [order.index(i) for i in range(gates)]

    def torch_order(tensor):
        """ONNX's gates in PyTorch's order."""
        return tensor.reshape(gates, hidden, *tensor.shape[1:])[inverse].reshape(tensor.shape)

    def peer(_, x, w, r, b, __, *starts):
        given = tuple(start.transpose(0, 1) if first else start for start in starts)
        parameters = {}
        for direction, suffix in enumerate(("", "_reverse")[:directions]):
            halves = b[direction].chunk(2)
            parameters[f"weight_ih_l0{suffix}"] = torch_order(w[direction])
            parameters[f"weight_hh_l0{suffix}"] = torch_order(r[direction])
            parameters[f"bias_ih_l0{suffix}"] = torch_order(halves[0])
            parameters[f"bias_hh_l0{suffix}"] = torch_order(halves[1])
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(lengths), first)
        arguments = (packed, given if op == "lstm" else given[0])
        y, last = torch.func.functional_call(layer, parameters, arguments)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=first)
        lasts = [end.transpose(0, 1) if first else end for end in (last if op == "lstm" else (last,))]
        whole = y.reshape(batch, steps, directions, hidden) if first else y.reshape(steps, batch, directions, hidden)
        return (whole if first else whole.transpose(1, 2), *lasts)

    starts = states[: 2 if op == "lstm" else 1]
    assert agrees(op, attrs, [x, *weights, bias, lengths, *starts], peer)
