"""Arithmetic on sizes that may be symbols, and the checks of shape inference that all operators share.

A dimension is an int or a text: a symbol (``"N"``) or a product of symbols and at most one number (``"N*49"``). Where
it depends on numbers that only a run knows, inference gives ``UNKNOWN``, and ``infer_node`` a symbol of its own for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from qtool.errors import ModelError
from qtool.ir import Dim, DType, Shape, TensorType
from qtool.ops.registry import require

UNKNOWN = "?"
"""A size that inference cannot tell; symbols that begin with it stand for such sizes."""
MAX_DIGITS = 18
"""A number in a symbolic size with more digits than this is not the size of any tensor."""


def product(dims: Iterable[Dim]) -> Dim:
    """The number of elements of a shape: ``product(("N", 7, 7)) == "N*49"``."""
    factor, symbols = 1, list[str]()
    for dim in dims:
        number, names = _factors(dim)
        factor *= number
        symbols += names
    return _spell(factor, symbols)


def divide(total: Dim, part: Dim) -> Dim | None:
    """``total / part``; None where that is not a whole number of elements for every value of the symbols."""
    number, symbols = _factors(total)
    divisor, names = _factors(part)
    rest = list(symbols)
    for name in names:
        if name not in rest:
            return None
        rest.remove(name)
    if divisor == 0 or number % divisor:
        return None
    return _spell(number // divisor, rest)


def known(dim: Dim, what: str) -> int:
    """The size as a number; ModelError where it is only known at run time."""
    if isinstance(dim, str):
        raise ModelError(f"got the unknown size {dim} as {what}, expected a number")
    return dim


def axis_of(dim: int, rank: int, what: str = "dim") -> int:
    """A possibly negative axis as one in ``range(rank)``."""
    require(-rank <= dim < rank, f"{what} {dim}", f"one in [{-rank}, {rank}) for a tensor of rank {rank}")
    return dim % rank


def axes_of(dims: Sequence[int], rank: int) -> tuple[int, ...]:
    """Several axes, none of them twice."""
    axes = tuple(axis_of(dim, rank) for dim in dims)
    require(len(set(axes)) == len(axes), f"dims {tuple(dims)}", "each axis once")
    return axes


def broadcast(*shapes: Shape) -> Shape:
    """The common shape, as NumPy and PyTorch broadcast. A symbol beside a number or another symbol may turn out to fit:
    the number, if it is not 1, is then the result, and of two symbols nothing is known."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result: list[Dim] = []
    for sizes in zip(*padded, strict=True):
        others = {size for size in sizes if size != 1}
        numbers = {size for size in others if isinstance(size, int)}
        require(
            len(numbers) <= 1, f"shapes {' and '.join(map(spell, shapes))}", "shapes that can be broadcast together"
        )
        certain = [*numbers, *others] if numbers or len(others) < 2 else [UNKNOWN]
        result.append(certain[0] if certain else 1)
    return tuple(result)


def same_size(a: Dim, b: Dim) -> bool:
    """Whether two sizes may be equal: they are, or one is only known at run time."""
    return a == b or isinstance(a, str) or isinstance(b, str)


def same_shape(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(map(same_size, a, b))


def is_unknown(dim: Dim) -> bool:
    """Whether a size has a part that only a run can tell (the symbols of graph inputs are no such parts)."""
    return isinstance(dim, str) and any(part.startswith(UNKNOWN) for part in dim.split("*"))


def numbers(dims: Sequence[Dim]) -> tuple[int, ...] | None:
    """The sizes, if all of them are known."""
    known_ones = tuple(dim for dim in dims if isinstance(dim, int))
    return known_ones if len(known_ones) == len(dims) else None


def spell(shape: Shape) -> str:
    """A shape as messages show it: ``(N, 3, 8, 8)``."""
    return f"({', '.join(map(str, shape))})"


def need_float(**tensors: TensorType | None) -> None:
    """Each tensor that is there holds floats (quantized values hold float32, logically), all of the same width."""
    found = {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None}
    for name, dtype in found.items():
        require(dtype.is_float, f"{dtype.value} as {name}", "float32, float64 or float16")
    _need_one_type(found)


def need_same(**tensors: TensorType | None) -> None:
    """All tensors that are there have one element type."""
    _need_one_type({name: tensor.dtype for name, tensor in tensors.items() if tensor is not None})


def need_numbers(**tensors: TensorType | None) -> None:
    """Each tensor that is there holds numbers, all of one element type."""
    for name, tensor in tensors.items():
        require(tensor is None or tensor.dtype is not DType.BOOL, f"bool as {name}", "numbers")
    need_same(**tensors)


def need_integers(**tensors: TensorType | None) -> None:
    """Each tensor that is there holds int32 or int64: indices, sizes, axes."""
    for name, tensor in tensors.items():
        if tensor is not None:
            integer = tensor.dtype in (DType.INT64, DType.INT32)
            require(integer, f"{tensor.dtype.value} as {name}", "int64 or int32")


def _need_one_type(found: Mapping[str, DType]) -> None:
    got = ", ".join(f"{dtype.value} as {name}" for name, dtype in found.items())
    require(len(set(found.values())) <= 1, got, "one element type")


def need_shape(name: str, tensor: TensorType | None, shape: Shape) -> None:
    """The tensor, if it is there, has exactly this shape."""
    if tensor is not None:
        require(same_shape(tensor.shape, shape), f"{name} of shape {spell(tensor.shape)}", spell(shape))


def need_rank(name: str, tensor: TensorType, rank: int, layout: str) -> None:
    require(len(tensor.shape) == rank, f"{name} of shape {spell(tensor.shape)}", f"rank {rank}, {layout}")


def _factors(dim: Dim) -> tuple[int, list[str]]:
    if isinstance(dim, int):
        return dim, []
    numbers, symbols = list[int](), list[str]()
    for part in dim.split("*"):
        if part.isdecimal():
            require(len(part) <= MAX_DIGITS, f"a size with {len(part)} digits", f"at most {MAX_DIGITS}")
            numbers.append(int(part))
        else:
            symbols.append(part)
    return math.prod(numbers), symbols


def _spell(factor: int, symbols: Sequence[str]) -> Dim:
    if not symbols or factor == 0:
        return factor
    return "*".join([*sorted(symbols), *([] if factor == 1 else [str(factor)])])
