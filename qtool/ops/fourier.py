"""The discrete Fourier transform, defined as ONNX has it: complex numbers are a last axis of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, TensorType
from qtool.ops.dims import UNKNOWN, axis_of, need_float, need_integers, product, spell
from qtool.ops.dynamic import ints_of
from qtool.ops.registry import Attrs, OpSpec, register, require


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


register(OpSpec("dft", DftAttrs, ("x", "dft_length?", "axis?"), dft_type, dft, onnx=("DFT",)))
