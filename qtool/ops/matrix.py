"""Sums of products of whatever axes; named and defined as ONNX has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, Shape, TensorType
from qtool.ops.activation import NoAttrs
from qtool.ops.dims import broadcast, need_float, need_numbers, need_rank, same_size, spell
from qtool.ops.dynamic import like
from qtool.ops.registry import Attrs, OpSpec, VjpCall, register, require
from qtool.ops.vjp import Gradients, at_least_float32, grad_of, gradients, unbroadcast

Types = tuple[TensorType, ...]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class GemmAttrs(Attrs):
    """alpha * a' . b' + beta * c, where a and b are transposed or not."""

    alpha: float = 1.0
    beta: float = 1.0
    transA: bool = False  # noqa: N815 (ONNX's name)
    transB: bool = False  # noqa: N815


@dataclass(frozen=True)
class EinsumAttrs(Attrs):
    """Einstein's notation, as NumPy has it: ``bij,bjk->bik``."""

    equation: str


def _gemm_type(attrs: GemmAttrs, a: TensorType, b: TensorType, c: TensorType | None = None) -> Types:
    need_numbers(a=a, b=b, c=c)
    need_rank("a", a, 2, "a matrix")
    need_rank("b", b, 2, "a matrix")
    rows, inner = reversed(a.shape) if attrs.transA else a.shape
    other, columns = reversed(b.shape) if attrs.transB else b.shape
    got = f"shapes {spell(a.shape)} and {spell(b.shape)}"
    require(same_size(inner, other), got, "as many columns of a as rows of b")
    if c is not None:
        require(len(c.shape) <= 2, f"c of shape {spell(c.shape)}", "one that can be broadcast to the product")
        broadcast(c.shape, (rows, columns))
    return like(a, (rows, columns))


def gemm(attrs: GemmAttrs, a: Array, b: Array, c: Array | None = None) -> tuple[Array, ...]:
    left, right = a.T if attrs.transA else a, b.T if attrs.transB else b
    y = np.matmul(left, right)
    if attrs.alpha != 1:
        y = y * a.dtype.type(attrs.alpha)
    if c is not None:
        y = y + (c if attrs.beta == 1 else a.dtype.type(attrs.beta) * c)
    return (np.asarray(y, a.dtype),)


@dataclass(frozen=True)
class Terms:
    """An equation taken apart; the letters of an ellipsis are ``...``."""

    inputs: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]


def terms_of(equation: str, count: int) -> Terms:
    """ModelError for an equation that is none for so many tensors."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = tuple(_letters(term) for term in left.split(","))
    require(len(inputs) == count, f"equation {equation!r} for {count} tensors", "one term a tensor")
    if arrow:
        output = _letters(right)
    else:
        used = [letter for term in inputs for letter in term]
        single = sorted(letter for letter in set(used) if used.count(letter) == 1 and letter != "...")
        output = (*(("...",) if "..." in used else ()), *single)
    known = {letter for term in inputs for letter in term}
    fits = set(output) <= known and len(set(output)) == len(output)
    require(fits, f"equation {equation!r}", "letters of the inputs on the right, each once")
    return Terms(inputs, output)


def _letters(term: str) -> tuple[str, ...]:
    before, dots, after = term.partition("...")
    letters = (*before, *(("...",) if dots else ()), *after)
    require(all(letter in LETTERS or letter == "..." for letter in letters), f"term {term!r}", "letters, and ... once")
    return letters


def _einsum_type(attrs: EinsumAttrs, *tensors: TensorType) -> Types:
    need_numbers(**{f"input {i}": tensor for i, tensor in enumerate(tensors)})
    terms = terms_of(attrs.equation, len(tensors))
    sizes: dict[str, Dim] = {}
    rest: Shape = ()
    for letters, tensor in zip(terms.inputs, tensors, strict=True):
        spare = len(tensor.shape) - sum(letter != "..." for letter in letters)
        fits = spare == 0 or ("..." in letters and spare > 0)
        require(fits, f"a tensor of shape {spell(tensor.shape)} for {''.join(letters)!r}", "an axis a letter")
        dims = list(tensor.shape)
        for letter in letters:
            if letter == "...":
                rest = broadcast(rest, tuple(dims[:spare]))
                del dims[:spare]
            else:
                (sizes[letter],) = broadcast((sizes.get(letter, 1),), (dims.pop(0),))
    shape = [dim for letter in terms.output for dim in (rest if letter == "..." else (sizes[letter],))]
    return like(tensors[0], tuple(shape))


def einsum(attrs: EinsumAttrs, *tensors: Array) -> tuple[Array, ...]:
    return (np.asarray(np.einsum(attrs.equation.replace(" ", ""), *tensors), tensors[0].dtype),)


def _det_type(_: NoAttrs, x: TensorType) -> Types:
    need_float(x=x)
    square = len(x.shape) >= 2 and same_size(x.shape[-1], x.shape[-2])
    require(square, f"x of shape {spell(x.shape)}", "square matrices")
    return like(x, x.shape[:-2])


def det(_: NoAttrs, x: Array) -> tuple[Array, ...]:
    return (np.asarray(np.linalg.det(x.astype(np.float64)), x.dtype),)


def gemm_vjp(call: VjpCall) -> Gradients:
    attrs = call.attrs
    a, b = (at_least_float32(array) for array in call.inputs[:2] if array is not None)
    left, right = a.T if attrs.transA else a, b.T if attrs.transB else b
    grad = at_least_float32(grad_of(call))
    scaled = grad if attrs.alpha == 1 else grad * grad.dtype.type(attrs.alpha)

    def by_a() -> Array:
        found = np.asarray(np.matmul(scaled, right.T))
        return found.T if attrs.transA else found

    def by_b() -> Array:
        found = np.asarray(np.matmul(left.T, scaled))
        return found.T if attrs.transB else found

    return gradients(call, by_a, by_b, lambda: grad * grad.dtype.type(attrs.beta))


def _spelled(terms: Terms, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The terms of inputs and output with letters of their own for the axes of an ellipsis, which end together."""
    used = {letter for term in terms.inputs for letter in term}
    spare = "".join(letter for letter in LETTERS if letter not in used)
    counts = [rank - len(term) + 1 if "..." in term else 0 for term, rank in zip(terms.inputs, ranks, strict=True)]
    most = max(counts)
    inputs = [
        "".join(term).replace("...", spare[most - count : most])
        for term, count in zip(terms.inputs, counts, strict=True)
    ]
    return inputs, "".join(terms.output).replace("...", spare[:most])


def einsum_vjp(call: VjpCall) -> Gradients:
    """By one tensor: the sum of products of all others and the output's derivative, over what the tensor has not."""
    tensors = [array for array in call.inputs if array is not None]
    terms, output = _spelled(terms_of(call.attrs.equation, len(tensors)), [tensor.ndim for tensor in tensors])
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, size in zip(term, tensor.shape, strict=True):
            if sizes.get(letter, 1) == 1:  # what has size 1 is broadcast, to size 0 as well
                sizes[letter] = size

    def by(position: int) -> Array:
        term, tensor = terms[position], tensors[position]
        others = [i for i in range(len(tensors)) if i != position]
        given = [output, *(terms[i] for i in others)]
        single = "".join(dict.fromkeys(term))  # a letter that comes twice is a diagonal
        summed = "".join(letter for letter in single if any(letter in each for each in given))
        part = np.einsum(f"{','.join(given)}->{summed}", grad_of(call), *(tensors[i] for i in others))
        part = part[tuple(slice(None) if letter in summed else None for letter in single)]
        part = np.broadcast_to(part, [sizes[letter] for letter in single])
        if single == term:
            return part
        found = np.zeros(tensor.shape, part.dtype)
        diagonal = np.einsum(f"{term}->{single}", found)  # a view that can be written to
        diagonal[...] = unbroadcast(part, diagonal.shape)
        return found

    return gradients(call, *[lambda i=i: by(i) for i in range(len(tensors))])


def det_vjp(call: VjpCall) -> Gradients:
    """det(x) times the transposed inverse; DataError where there is none."""
    (x,) = call.inputs
    assert x is not None

    def part() -> Array:
        try:
            inverse = np.linalg.inv(x.astype(np.float64))
        except np.linalg.LinAlgError:
            raise DataError("det: got a singular matrix, expected one with an inverse, to differentiate") from None
        return np.asarray((grad_of(call) * call.outputs[0])[..., None, None] * np.swapaxes(inverse, -1, -2))

    return gradients(call, part)


register(OpSpec("gemm", GemmAttrs, ("a", "b", "c?"), _gemm_type, gemm, onnx=("Gemm",), empty=True, vjp=gemm_vjp))
register(
    OpSpec("einsum", EinsumAttrs, ("tensors*",), _einsum_type, einsum, onnx=("Einsum",), empty=True, vjp=einsum_vjp)
)
register(OpSpec("det", NoAttrs, ("x",), _det_type, det, onnx=("Det",), vjp=det_vjp))
