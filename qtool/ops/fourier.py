"""The discrete Fourier transform, defined as ONNX has it: complex numbers are a last axis of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, TensorType
from qtool.ops.dims import UNKNOWN, axis_of, need_float, need_integers, product, spell
from qtool.ops.dynamic import ints_of
from qtool.ops.registry import Attrs, OpSpec, VjpCall, register, require
from qtool.ops.vjp import Gradients, grad_of, gradients


@dataclass(frozen=True)
class DftAttrs(Attrs):
    """``onesided`` leaves out the half that follows from the other, forward; backward it takes such a half."""

    inverse: bool = False
    onesided: bool = False


def dft_type(
    attrs: DftAttrs, x: TensorType, length: TensorType | None = None, axis: TensorType | None = None
) -> tuple[TensorType, ...]:
    need_float(x=x)
    need_integers(dft_length=length, axis=axis)
    rank = len(x.shape)
    require(rank >= 2 and x.shape[-1] in (1, 2), f"x of shape {spell(x.shape)}", "a last axis of 1 or 2")
    for name, tensor in (("dft_length", length), ("axis", axis)):
        require(tensor is None or product(tensor.shape) == 1, f"several of {name}", "one")
    last = 1 if attrs.inverse and attrs.onesided else 2
    places = (-2,) if axis is None else ints_of(axis)
    if places is None:
        return (TensorType(x.dtype, (*(UNKNOWN for _ in x.shape[:-1]), last)),)
    place = axis_of(places[0], rank, "axis")
    require(place < rank - 1, f"axis {places[0]}", "one before the last")
    size: Dim = x.shape[place]
    if length is not None:
        found = ints_of(length)
        size = UNKNOWN if found is None else found[0]
        require(size == UNKNOWN or (isinstance(size, int) and size >= 1), f"dft_length {size}", "at least 1")
    elif attrs.inverse and attrs.onesided:
        size = 2 * (size - 1) if isinstance(size, int) else UNKNOWN
    if attrs.onesided and not attrs.inverse:
        size = size // 2 + 1 if isinstance(size, int) else UNKNOWN
    return (TensorType(x.dtype, (*x.shape[:place], size, *x.shape[place + 1 : -1], last)),)


def dft(attrs: DftAttrs, x: Array, length: Array | None = None, axis: Array | None = None) -> tuple[Array, ...]:
    place = (-2 if axis is None else int(axis.reshape(-1)[0])) % x.ndim
    if place == x.ndim - 1:
        raise DataError("got the last axis, which holds the parts of complex numbers, expected another one")
    wide = x.astype(np.float32) if x.dtype.itemsize < 4 else x  # the transform works in the input's own width
    signal = wide[..., 0] + 1j * wide[..., 1] if x.shape[-1] == 2 else wide[..., 0] + 0j
    count = None if length is None else int(length.reshape(-1)[0])
    if attrs.inverse and attrs.onesided:
        return (np.asarray(np.fft.irfft(signal, count, place)[..., None], x.dtype),)
    if attrs.inverse:
        y = np.fft.ifft(signal, count, place)
    else:
        y = np.fft.fft(signal, count, place)
        if attrs.onesided:
            y = np.take(y, np.arange(y.shape[place] // 2 + 1), place)
    return (np.stack([y.real, y.imag], -1).astype(x.dtype),)


def dft_vjp(call: VjpCall) -> Gradients:
    """The transpose of a transform is the one the other way, without its factor.

    What ``onesided`` left out is 0; backward, each number of the half that it took stands for two, but for the ends.
    """
    x, length, axis = (*call.inputs, None, None)[:3]
    assert x is not None
    place = (-2 if axis is None else int(axis.reshape(-1)[0])) % x.ndim

    def part() -> Array:
        grad = np.moveaxis(grad_of(call).astype(np.float64), place, 0)
        taken = x.shape[place]
        count = taken if length is None else int(length.reshape(-1)[0])
        if call.attrs.inverse and call.attrs.onesided:
            count = len(grad)
            found = np.fft.rfft(grad[..., 0], axis=0) / count
            found[1 : (count + 1) // 2] *= 2
        elif call.attrs.inverse:
            found = np.fft.fft(grad[..., 0] + 1j * grad[..., 1], axis=0) / count
        else:
            found = np.fft.ifft(grad[..., 0] + 1j * grad[..., 1], count, axis=0) * count
        whole = np.zeros((taken, *found.shape[1:]), np.complex128)  # the transform cut its input, or filled it up
        whole[: len(found)] = found[:taken]
        parts = [whole.real, whole.imag] if x.shape[-1] == 2 else [whole.real]
        return np.moveaxis(np.stack(parts, -1), 0, place)

    return gradients(call, part)


register(OpSpec("dft", DftAttrs, ("x", "dft_length?", "axis?"), dft_type, dft, onnx=("DFT",), vjp=dft_vjp))
