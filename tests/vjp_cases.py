"""What the tests of derivatives need beside the operators' cases: more of them, and where functions are smooth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qtool.ir import Array

RNG = np.random.default_rng(11)


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def scalar(number: int) -> Array:
    return np.array(number, np.int64)


def _positive(x: Array, _: int) -> Array:
    return np.abs(x) + 0.1


def _inside(x: Array, _: int) -> Array:
    return np.tanh(x)


DOMAINS: Mapping[str, Callable[[Array, int], Array]] = {
    "log": _positive,
    "sqrt": _positive,
    "acos": _inside,
    "asin": _inside,
    "atanh": _inside,
    "acosh": lambda x, _: 1.1 + np.abs(x),
    "pow": _positive,
    "div": lambda x, position: np.sign(x) * (np.abs(x) + 0.1) if position else x,
    "reciprocal": lambda x, _: np.sign(x) * (np.abs(x) + 0.1),
    "reduce_log_sum": _positive,
}
"""(numbers, position of the input) -> numbers where the function has a derivative of moderate size."""

MORE: dict[str, list[tuple]] = {
    "cast": [({"to": "float64"}, f(2, 3))],
    "mod": [({"fmod": True}, f(2, 3), f(3))],
    "clip": [({}, f(4, 3), None, np.array([0.5], np.float32)), ({}, f(4, 3))],
    "max": [({}, f(2, 3))],
}
"""Operator -> (attributes, inputs ...)."""
MORE["einsum"] = [
    ({"equation": "ij,jk"}, f(2, 3), f(3, 4)),
    ({"equation": "iij,k->kj"}, f(3, 3, 2), f(4)),
    ({"equation": "ij,ij->"}, f(3, 4), f(1, 4)),
    ({"equation": "b...i,...i->...b"}, f(2, 3, 5, 4), f(1, 4)),
    ({"equation": "i,i,ik->k"}, f(3), f(3), f(3, 2)),
    ({"equation": "...a"}, f(2, 3)),
]
MORE["gemm"] = [({"transA": True, "beta": 2.0}, f(3, 2), f(3, 4), f(2, 1)), ({}, f(3, 2), f(2, 4))]
MORE["conv3d"] = [
    (
        {"groups": 2, "stride": (1, 2, 3), "padding_mode": "circular", "padding": ((1, 0),) * 3},
        f(2, 4, 3, 4, 5),
        f(2, 2, 2, 1, 2),
    ),
    ({"groups": 2, "activation": "hardswish", "dilation": (2, 1, 1)}, f(2, 2, 3, 4, 5), f(4, 1, 2, 3, 2), f(4)),
]
MORE["conv_transpose1d"] = [({"stride": (2,), "dilation": (3,), "output_padding": (2,)}, f(2, 3, 5), f(3, 4, 3), f(4))]
MORE["conv_transpose2d"] = [
    ({"groups": 3, "stride": (2, 1), "padding": ((1, 2), (0, 1))}, f(2, 3, 4, 5), f(3, 1, 3, 2), f(3))
]
MORE["col2im"] = [({"strides": (2, 1), "dilations": (1, 2)}, f(2, 8, 6), i64(4, 5), i64(2, 2))]
MORE["lp_normalization"] = [({"axis": 0}, f(3, 4))]
MORE["lrn"] = [({"size": 4, "alpha": 0.3, "bias": 1.5}, f(2, 6, 3))]
MORE["rms_norm"] = [({"axis": 1}, f(2, 3, 4), f(3, 1))]
MORE["layer_normalization"] = [({"axis": -2}, f(2, 3, 4), f(4))]
MORE["mean_variance_normalization"] = [({"axes": (0, 1)}, f(2, 3, 4))]
MORE["softmax_cross_entropy_loss"] = [({"reduction": "sum"}, f(3, 4), i64(0, 3, 3), np.abs(f(4)))]
MORE["max_pool"] = [({"kernel_shape": (3, 2), "storage_order": 1, "pads": (1, 0, 1, 1)}, f(2, 3, 5, 4))]
MORE["lp_pool"] = [({"kernel_shape": (2, 2), "p": 3, "strides": (1, 2)}, f(2, 3, 5, 4))]
MORE["average_pool"] = [({"kernel_shape": (3, 2), "pads": (1, 0, 1, 1), "count_include_pad": True}, f(2, 3, 5, 4))]
MORE["max_unpool"] = [({"kernel_shape": (2,), "strides": (2,)}, f(1, 1, 3), np.array([[[0, 3, 4]]]), i64(1, 1, 8))]
MORE["depth_to_space"] = [({"blocksize": 2}, f(1, 8, 2, 3))]
MORE["space_to_depth"] = [({"blocksize": 2, "mode": "CRD"}, f(1, 2, 4, 6))]
MORE["expand"] = [({}, f(2, 1, 4), i64(1, 2, 3, 1)), ({}, f(3), i64(2, 1))]
MORE["pad_to"] = [
    ({}, f(2, 3), i64(0, 1, 2, -1), np.array(2.5, np.float32)),
    *(({"mode": mode}, f(3, 4), i64(2, 1, 1, 3)) for mode in ("reflect", "edge", "wrap")),
]
MORE["gather"] = [({"axis": -1}, f(2, 3), scalar(1))]
MORE["scatter_nd"] = [({}, f(4, 3), np.array([[1], [-1]]), f(2, 3))]
MORE["scatter_elements"] = [({"reduction": "add"}, f(3, 4), np.array([[0, 0, 2]]), f(1, 3))]
MORE["tensor_scatter"] = [({}, f(2, 4, 3), f(2, 2, 3))]
MORE["compress"] = [({}, f(3, 2), np.array([True, False, True, True]))]
MORE["cum_sum"] = [({"exclusive": True}, f(3, 4), scalar(0))]
MORE["cum_prod"] = [
    ({"exclusive": exclusive, "reverse": reverse}, f(3, 4), scalar(1))
    for exclusive in (False, True)
    for reverse in (False, True)
]
MORE["top_k"] = [({"axis": 0}, f(3, 5), i64(2))]
MORE["reduce_prod"] = [({"axes": (0, -1)}, f(3, 2, 4)), ({"noop_with_empty_axes": True}, f(2, 3))]
MORE["resize"] = [
    (
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "axes": (2, 3)},
        f(1, 2, 4, 5),
        np.array([0.2, -0.1, 0.7, 1.2], np.float32),
        None,
        i64(6, 3),
    ),
    ({"mode": "nearest", "axes": (1,)}, f(2, 3, 2), None, None, i64(8)),
]


def _layer(gates: int, layout: int, directions: int, states: int) -> tuple[Array | None, ...]:
    """Sequences of their own lengths, both biases and initial states."""
    x = f(3, 5, 2) if layout else f(5, 3, 2)
    first = (3, directions, 4) if layout else (directions, 3, 4)
    weights = f(directions, gates * 4, 2), f(directions, gates * 4, 4), f(directions, 2 * gates * 4)
    return (x, *weights, i64(5, 2, 4), *(f(*first) for _ in range(states)))


for _op, _gates, _states, _attrs in (
    ("lstm", 4, 2, {}),
    ("gru", 3, 1, {"linear_before_reset": True}),
    ("rnn", 1, 1, {}),
):
    MORE[_op] = [
        (
            {"hidden_size": 4, "layout": layout, "direction": direction, **_attrs},
            *_layer(_gates, layout, directions, _states),
        )
        for layout in (0, 1)
        for direction, directions in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
    ]
MORE["rnn"].append(({"hidden_size": 4, "activations": ("Relu",)}, *_layer(1, 0, 1, 1)))
MORE["one_hot"] = [({"axis": 0}, np.array([[0, 3], [1, 9]]), scalar(4), f(2))]
MORE["grid_sample"] = [
    ({"mode": mode, "padding_mode": padding, "align_corners": corners}, f(2, 3, 4, 5), f(2, 3, 2, 2))
    for mode in ("linear", "cubic", "nearest")
    for padding in ("zeros", "border", "reflection")
    for corners in (False, True)
]
MORE["affine_grid"] = [({"align_corners": True}, f(2, 3, 4), i64(2, 1, 3, 1, 4))]
MORE["dft"] = [
    ({}, f(2, 5, 2)),
    ({"onesided": True}, f(2, 6, 1), scalar(4)),
    ({"onesided": True}, f(2, 5, 1), scalar(7)),
    ({"inverse": True}, f(3, 5, 2), scalar(8)),
    *(({"inverse": True, "onesided": True}, f(3, 5, 2), length) for length in (None, scalar(7), scalar(6), scalar(14))),
]

NONE = np.zeros((0, 3), np.float32)
EMPTY: list[tuple] = [
    ("abs", {}, NONE),
    ("log_softmax", {}, NONE),
    ("pow", {}, NONE, f(3)),
    ("max", {}, NONE, f(1, 3)),
    ("where", {}, np.zeros((0, 1), bool), NONE, f(1, 3)),
    ("gemm", {}, NONE, f(3, 2), f(2)),
    ("einsum", {"equation": "ij,jk->ik"}, NONE, f(3, 2)),
    ("gather", {"axis": 1}, NONE, i64(0, 1)),
    ("gather", {}, f(2, 3), i64()),
    ("gather_nd", {}, f(2, 3), np.zeros((0, 1), np.int64)),
    ("scatter_nd", {}, f(2, 3), np.zeros((0, 1), np.int64), NONE),
    ("compress", {"axis": 0}, f(2, 3), np.array([False, False])),
    ("top_k", {}, f(2, 3), i64(0)),
    ("cum_sum", {"exclusive": True}, NONE, scalar(0)),
    ("cum_prod", {}, NONE, scalar(0)),
    ("slice_to", {}, f(2, 3), i64(2), i64(2)),
    ("split_to", {"outputs": 2}, f(2, 3), i64(2, 0)),
    ("tile", {}, f(2, 3), i64(0, 1)),
    ("expand", {}, np.zeros((0, 1), np.float32), i64(0, 3)),
    ("pad_to", {}, NONE, i64(1, 0, 1, 0), np.array(1, np.float32)),
    ("resize", {"axes": (0,)}, NONE, None, None, i64(0)),
    *((f"reduce_{name}", {"axes": (0,)}, NONE) for name in ("max", "sum", "prod", "l2", "log_sum_exp")),
    *((f"reduce_{name}", {"axes": (1,)}, NONE) for name in ("min", "mean", "prod", "l1", "log_sum")),
]
"""Tensors without elements."""
