"""The headers ``qtool.h`` and ``qtool_args.h`` as ctypes: the same names in the same order (a test compares them)."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Mapping
from ctypes import c_char_p, c_double, c_int32, c_int64, c_uint8, c_void_p
from typing import ClassVar

from qtool.native.structures import Args as Args
from qtool.native.structures import copied as copied
from qtool.native.structures import floats, ints, longs, pointers
from qtool.native.structures import make as make

ABI = 7
MAX_INPUTS = 4
SLACK = 4096
"""Bytes after the end of anything in the arena that kernels may read."""

ISAS = ("scalar", "avx2", "avxvnni", "avx512vnni", "amx")
"""Names of ``qt_isa`` by value."""


class Status(enum.IntEnum):
    OK = 0
    INVALID = 1
    NO_MEMORY = 2
    UNSUPPORTED = 3


class Kind(enum.IntEnum):
    """``qt_op_kind``."""

    QCONV = 0
    SCONV = 1
    QLINEAR_DYNAMIC = 2
    QBINARY = 3
    SBINARY = 4
    LUT = 5
    SUNARY = 6
    QPOOL = 7
    SPOOL = 8
    QUANTIZE = 9
    DEQUANTIZE = 10
    COPY = 11
    PERMUTE = 12
    SAFFINE = 13
    SSOFTMAX = 14
    SLAYERNORM = 15
    RECURRENT = 16
    SMATMUL = 17
    CEILING = 18
    GATHER = 19
    MOVE = 20
    QSOFTMAX = 21
    QMEAN = 22
    QLAYERNORM = 23
    QMATMUL = 24
    TCONV = 25
    TCONV_INPUT_GRAD = 26
    TCONV_WEIGHT_GRAD = 27
    TNORM = 28
    TNORM_GRAD = 29
    TSUMS = 30
    TAFFINE = 31
    TFAKE_QUANT = 32
    TFAKE_QUANT_GRAD = 33
    TFAKE_QUANT_SCALE_GRAD = 34
    TMIN_MAX = 35
    TCLAMP = 36
    TCLAMP_GRAD = 37
    TADD = 38
    TMAX_POOL_GRAD = 39
    HISTOGRAM = 40


class Binary(enum.IntEnum):
    ADD = 0
    SUB = 1
    MUL = 2
    DIV = 3


class Unary(enum.IntEnum):
    CLAMP = 0
    LEAKY_RELU = 1
    ELU = 2
    HARDSWISH = 3
    HARDSIGMOID = 4
    SIGMOID = 5
    TANH = 6
    GELU = 7
    GELU_TANH = 8
    SILU = 9
    EXP = 10


class Storage(enum.IntEnum):
    UINT8 = 0
    INT8 = 1
    INT8_SHIFTED = 2


class Pool(enum.IntEnum):
    MAX = 0
    AVERAGE = 1


class ConvArgs(Args):
    c_name = "qt_conv_args"
    arrays: ClassVar = {
        "weight": ("int8", "float32"),
        "bias_i32": ("int32",),
        "bias_f32": ("float32",),
        "multiplier": ("float32",),
        "lut": ("uint8",),
    }
    _fields_: ClassVar = [
        *ints("batch in_height in_width in_channels out_height out_width out_channels kernel_height kernel_width"),
        *ints("stride_height stride_width pad_top pad_left dilation_height dilation_width groups"),
        *ints("x_zero out_zero out_min out_max residual res_zero"),
        *floats("res_multiplier out_min_f out_max_f"),
        *pointers("weight bias_i32 bias_f32 multiplier add lut"),
        *longs("out_pitch out_offset"),
    ]


class LinearDynamicArgs(Args):
    c_name = "qt_linear_dynamic_args"
    arrays: ClassVar = {"weight": ("int8",), "w_scale": ("float32",), "bias": ("float32",)}
    _fields_: ClassVar = [
        *longs("rows"),
        *ints("in_features out_features reduce_range row_wise"),
        *floats("out_min_f out_max_f"),
        *pointers("weight w_scale bias"),
        *ints("fused reserved"),
    ]


class BinaryArgs(Args):
    c_name = "qt_binary_args"
    _fields_: ClassVar = [
        *longs("rows"),
        *ints("channels kind b_broadcast reserved"),
        *longs("rows_per_b"),
        *floats("a_scale b_scale inv_scale"),
        *ints("a_zero b_zero out_zero out_min out_max fixed_point a_multiplier b_multiplier offset shift"),
        *floats("out_min_f out_max_f"),
    ]


class LutArgs(Args):
    c_name = "qt_lut_args"
    arrays: ClassVar = {"table": ("uint8",)}
    _fields_: ClassVar = [*longs("count"), *pointers("table"), *longs("channels")]


class UnaryArgs(Args):
    c_name = "qt_unary_args"
    _fields_: ClassVar = [*longs("count"), *ints("kind"), *floats("a b")]


class PoolArgs(Args):
    c_name = "qt_pool_args"
    _fields_: ClassVar = [
        *ints("kind batch in_height in_width channels out_height out_width kernel_height kernel_width"),
        *ints("stride_height stride_width pad_top pad_left dilation_height dilation_width"),
        *ints("count_include_pad pad_bottom pad_right divisor_override adaptive x_zero out_zero"),
        *floats("x_scale out_scale"),
    ]


class QuantizeArgs(Args):
    c_name = "qt_quantize_args"
    _fields_: ClassVar = [
        *longs("outer rows cols"),
        *ints("transpose zero_point"),
        *floats("scale"),
        *ints("storage"),
    ]


class CopyArgs(Args):
    c_name = "qt_copy_args"
    arrays: ClassVar = {"lut": ("uint8",)}
    _fields_: ClassVar = [
        *longs("rows row_bytes in_stride out_stride in_offset out_offset"),
        *pointers("lut"),
    ]


class GatherArgs(Args):
    c_name = "qt_gather_args"
    _fields_: ClassVar = [*longs("count table_rows row_bytes"), *ints("index_bytes wrap")]


class MoveArgs(Args):
    c_name = "qt_move_args"
    arrays: ClassVar = {"source": ("int32",), "target": ("int32",)}
    _fields_: ClassVar = [
        *longs("outer count in_rows out_rows row_bytes"),
        *pointers("source target"),
        ("fill", c_uint8 * 8),
        *ints("element_bytes reserved"),
    ]


class PermuteArgs(Args):
    c_name = "qt_permute_args"
    _fields_: ClassVar = [
        *ints("rank element_bytes"),
        ("shape", c_int64 * 6),
        ("order", c_int32 * 6),
    ]


class AffineArgs(Args):
    c_name = "qt_affine_args"
    arrays: ClassVar = {"scale": ("float32",), "shift": ("float32",)}
    _fields_: ClassVar = [*longs("rows"), *ints("channels"), *pointers("scale shift")]


class RowsArgs(Args):
    c_name = "qt_rows_args"
    arrays: ClassVar = {"scale": ("float32",), "shift": ("float32",)}
    _fields_: ClassVar = [*longs("rows"), *ints("n"), *floats("eps"), *pointers("scale shift")]


class QrowsArgs(Args):
    c_name = "qt_qrows_args"
    arrays: ClassVar = {"weight": ("float32",), "bias": ("float32",), "powers": ("int64",)}
    _fields_: ClassVar = [
        *longs("rows n inner"),
        *ints("shift x_zero out_zero"),
        *floats("x_scale out_scale"),
        *ints("reserved"),
        ("eps", c_double),
        *pointers("weight bias powers"),
    ]


class MatmulArgs(Args):
    c_name = "qt_matmul_args"
    _fields_: ClassVar = [
        ("batch", c_int64 * 4),
        *longs("rows inner columns"),
        ("a_batch", c_int64 * 4),
        *longs("a_row a_inner a_offset"),
        ("b_batch", c_int64 * 4),
        *longs("b_inner b_column b_offset"),
        ("mask_batch", c_int64 * 4),
        *longs("mask_row mask_offset"),
        ("y_batch", c_int64 * 4),
        *longs("y_row"),
        *floats("scale"),
        *ints("mask a_zero b_zero out_zero reserved"),
    ]


class Recurrent(enum.IntEnum):
    LSTM = 0
    GRU = 1
    RNN = 2


class RecurrentArgs(Args):
    c_name = "qt_recurrent_args"
    arrays: ClassVar = {
        "w": ("int8", "float32"),
        "r": ("int8", "float32"),
        **dict.fromkeys(("w_scale", "r_scale", "bias", "peephole"), ("float32",)),
    }
    _fields_: ClassVar = [
        *ints("kind time batch in_features hidden directions reverse batch_first dynamic reduce_range row_wise fused"),
        *ints("input_forget linear_before_reset relu lengths_bytes initial_h initial_c"),
        *floats("clip"),
        *pointers("w r w_scale r_scale bias peephole"),
    ]


class TnormArgs(Args):
    c_name = "qt_tnorm_args"
    _fields_: ClassVar = [*longs("rows"), *ints("channels"), *floats("eps")]


class TquantArgs(Args):
    c_name = "qt_tquant_args"
    _fields_: ClassVar = [*longs("rows n"), *floats("low high"), *ints("fused reserved")]


class HistogramArgs(Args):
    c_name = "qt_histogram_args"
    _fields_: ClassVar = [*longs("count"), *ints("bins dyadic")]


class TclampArgs(Args):
    c_name = "qt_tclamp_args"
    _fields_: ClassVar = [*longs("count"), *floats("low high")]


class Ceiling(enum.IntEnum):
    INT8 = 0
    FLOAT = 1
    READ = 2


class CeilingArgs(Args):
    c_name = "qt_ceiling_args"
    _fields_: ClassVar = [*ints("kind chunks"), *longs("bytes rounds")]


class CBuffer(ctypes.Structure):
    c_name = "qt_buffer"
    _fields_: ClassVar = [*ints("kind reserved"), *longs("offset bytes piece_bytes")]


class COp(ctypes.Structure):
    c_name = "qt_op"
    _fields_: ClassVar = [
        *ints("kind input_count"),
        ("inputs", c_int32 * MAX_INPUTS),
        *ints("output reserved"),
        ("args", c_void_p),
        ("kernel", c_char_p),
    ]


class CPlanDesc(ctypes.Structure):
    c_name = "qt_plan_desc"
    _fields_: ClassVar = [
        *ints("abi isa threads buffer_count op_count pieces piece_ops reserved"),
        *longs("arena_bytes"),
        ("buffers", ctypes.POINTER(CBuffer)),
        ("ops", ctypes.POINTER(COp)),
    ]


ARGS: Mapping[Kind, type[Args]] = {
    Kind.QCONV: ConvArgs,
    Kind.SCONV: ConvArgs,
    Kind.QLINEAR_DYNAMIC: LinearDynamicArgs,
    Kind.QBINARY: BinaryArgs,
    Kind.SBINARY: BinaryArgs,
    Kind.LUT: LutArgs,
    Kind.SUNARY: UnaryArgs,
    Kind.QPOOL: PoolArgs,
    Kind.SPOOL: PoolArgs,
    Kind.QUANTIZE: QuantizeArgs,
    Kind.DEQUANTIZE: QuantizeArgs,
    Kind.COPY: CopyArgs,
    Kind.PERMUTE: PermuteArgs,
    Kind.GATHER: GatherArgs,
    Kind.SAFFINE: AffineArgs,
    Kind.SSOFTMAX: RowsArgs,
    Kind.SLAYERNORM: RowsArgs,
    Kind.RECURRENT: RecurrentArgs,
    Kind.SMATMUL: MatmulArgs,
    Kind.CEILING: CeilingArgs,
    Kind.MOVE: MoveArgs,
    Kind.QSOFTMAX: QrowsArgs,
    Kind.QMEAN: QrowsArgs,
    Kind.QLAYERNORM: QrowsArgs,
    Kind.QMATMUL: MatmulArgs,
    Kind.TCONV: ConvArgs,
    Kind.TCONV_INPUT_GRAD: ConvArgs,
    Kind.TCONV_WEIGHT_GRAD: ConvArgs,
    Kind.TNORM: TnormArgs,
    Kind.TNORM_GRAD: TnormArgs,
    Kind.TSUMS: TnormArgs,
    Kind.TAFFINE: TnormArgs,
    Kind.TFAKE_QUANT: TquantArgs,
    Kind.TFAKE_QUANT_GRAD: TquantArgs,
    Kind.TFAKE_QUANT_SCALE_GRAD: TquantArgs,
    Kind.TMIN_MAX: TquantArgs,
    Kind.TCLAMP: TclampArgs,
    Kind.TCLAMP_GRAD: TclampArgs,
    Kind.TADD: TclampArgs,
    Kind.TMAX_POOL_GRAD: PoolArgs,
    Kind.HISTOGRAM: HistogramArgs,
}
"""The argument structure of each kind of operator."""
