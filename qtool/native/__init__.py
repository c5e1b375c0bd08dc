"""The Python face of the native engine (``libqtool.so``, a C ABI loaded with ctypes). It knows arrays, not graphs."""

from qtool.native.abi import Kind
from qtool.native.library import KernelRow, available, isa_note, kernels, supported_isas, supports, why_not
from qtool.native.plan import WHOLE, Buffer, Op, Pieces, Plan, choose_isa

__all__ = [
    "WHOLE",
    "Buffer",
    "KernelRow",
    "Kind",
    "Op",
    "Pieces",
    "Plan",
    "available",
    "choose_isa",
    "isa_note",
    "kernels",
    "supported_isas",
    "supports",
    "why_not",
]
