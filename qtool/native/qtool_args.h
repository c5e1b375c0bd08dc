// The arguments of the operators of qtool.h, which includes this file: one struct a kind or several, with the formulas or
// the header that has them.
#ifndef QTOOL_ARGS_H_
#define QTOOL_ARGS_H_

#include <stdint.h>

// One convolution over NHWC; 1-d has height 1, linear has batch = rows, height = width = 1 and a 1x1 kernel.
//
//   acc[n, y, x, o] = sum over (ky, kx, i) of (a[n, y*sh - pt + ky*dh, x*sw - pl + kx*dw, g*I + i] - x_zero) * w[o, ky, kx, i]
//   a outside of the picture counts as x_zero (so the product is 0); g = o / (O / groups), I = in_channels / groups.
//
// QCONV, all in float32, every operation rounded by itself (no fused multiply-add):
//   r = (float(acc + bias_i32[o]) + bias_f32[o]) * multiplier[o]
//   residual 1 (summed before the one rounding): r = r + (float(res) - res_zero) * res_multiplier
//   q = clamp(nearbyint(clamp(r, out_min - out_zero, out_max - out_zero)) + out_zero, out_min, out_max)
//   residual 2 (the sum of two quantized tensors, as QBINARY add by `res_*`): q is requantized by `add`
//   lut (256 bytes or NULL) maps the result last.
// SCONV: y = clamp(acc + bias_f32[o] (+ residual), out_min_f, out_max_f)
struct qt_binary_args;
typedef struct qt_conv_args {
  int32_t batch, in_height, in_width, in_channels;
  int32_t out_height, out_width, out_channels;
  int32_t kernel_height, kernel_width, stride_height, stride_width;
  int32_t pad_top, pad_left, dilation_height, dilation_width, groups;
  int32_t x_zero, out_zero, out_min, out_max;
  int32_t residual;  // 0 none, 1 before the rounding, 2 after it
  int32_t res_zero;
  float res_multiplier;  // scale of the residual / scale of the output
  float out_min_f, out_max_f;
  const void* weight;       // [O][KH][KW][I], int8 or float32; read while the plan is made, not kept
  const int32_t* bias_i32;  // [O] or NULL
  const float* bias_f32;    // [O] or NULL
  const float* multiplier;  // [O], QCONV
  const struct qt_binary_args* add;  // residual 2: a is the convolution's own result, b the residual
  const uint8_t* lut;
  // QCONV without residual: bytes from an output pixel to the next, 0 for out_channels, and before the first. What lies
  // between pixels is left as it is.
  int64_t out_pitch, out_offset;
} qt_conv_args;

// y = x . w' + bias with x quantized on the fly, per tensor (row_wise 0) or per row (1):
// numerics of FBGEMM's ChooseQuantizationParams; x is rounded as by QUANTIZE;
// y = float(acc) * (x_scale * w_scale[o]) + bias[o], clamped: one rounding for product and sum when `fused` (FBGEMM),
// one for each when not (QNNPACK).
typedef struct qt_linear_dynamic_args {
  int64_t rows;
  int32_t in_features, out_features;
  int32_t reduce_range, row_wise;
  float out_min_f, out_max_f;
  const int8_t* weight;  // [O][I]
  const float* w_scale;  // [O]
  const float* bias;     // [O] or NULL
  int32_t fused, reserved;
} qt_linear_dynamic_args;

enum qt_binary_kind { QT_ADD = 0, QT_SUB = 1, QT_MUL = 2, QT_DIV = 3 };

// rows x channels; b may be broadcast.
// Float arithmetic, in float32 as PyTorch's vector code has it, with one rounding for each product and sum (fused):
//   da = fma(a_scale, a, -(a_scale * a_zero)), db alike; q = clamp(nearbyint(op(da, db) * inv_scale) + out_zero)
//   MUL comes with a_scale = b_scale = 1, so that the product is one of integers, and inv_scale = sa * sb / s_out.
// Fixed point (QNNPACK add): acc = a_multiplier*a + b_multiplier*b + offset; q = clamp(rounding_shift(acc, shift) + out_zero),
// rounding half away from zero.
typedef struct qt_binary_args {
  int64_t rows;
  int32_t channels;
  int32_t kind;
  int32_t b_broadcast;  // 0: same shape; 1: one row for all; 2: one scalar; 3: one row for every `rows_per_b` rows
  int32_t reserved;
  int64_t rows_per_b;
  float a_scale, b_scale, inv_scale;
  int32_t a_zero, b_zero, out_zero, out_min, out_max;
  int32_t fixed_point, a_multiplier, b_multiplier, offset, shift;
  float out_min_f, out_max_f;
} qt_binary_args;

// y[i] = table[i % channels][x[i]]; 0 channels are one.
typedef struct qt_lut_args {
  int64_t count;
  const uint8_t* table;  // [channels][256]
  int64_t channels;
} qt_lut_args;

enum qt_unary_kind {
  QT_CLAMP = 0,  // a = low, b = high (relu, relu6, hardtanh)
  QT_LEAKY_RELU = 1,  // a = slope
  QT_ELU = 2,         // a = alpha
  QT_HARDSWISH = 3,
  QT_HARDSIGMOID = 4,
  QT_SIGMOID = 5,
  QT_TANH = 6,
  QT_GELU = 7,       // by erf
  QT_GELU_TANH = 8,  // by tanh
  QT_SILU = 9,
  QT_EXP = 10,
};

typedef struct qt_unary_args {
  int64_t count;
  int32_t kind;
  float a, b;
} qt_unary_args;

enum qt_pool_kind { QT_POOL_MAX = 0, QT_POOL_AVERAGE = 1 };

// Average, u8: q = clamp(nearbyint(float(sum - taps*x_zero) * multiplier) + out_zero) with multiplier given for the
// full window and, where windows are cut at the edge and padding does not count, divided accordingly:
// m = x_scale / (out_scale * taps), in float32. An average of adaptive bins adds the zero point before it rounds, fused:
// q = clamp(nearbyint(fma(float(sum - taps*x_zero), m, out_zero))).
// A global pool has the kernel as large as the picture. Bins of an adaptive pool: see `adaptive`.
typedef struct qt_pool_args {
  int32_t kind;
  int32_t batch, in_height, in_width, channels, out_height, out_width;
  int32_t kernel_height, kernel_width, stride_height, stride_width;
  int32_t pad_top, pad_left, dilation_height, dilation_width;
  int32_t count_include_pad, pad_bottom, pad_right;
  int32_t divisor_override;  // 0 none
  int32_t adaptive;          // bin y covers floor(y*H/OH) .. ceil((y+1)*H/OH)
  int32_t x_zero, out_zero;
  float x_scale, out_scale;
} qt_pool_args;

// The source is laid out [outer][rows][cols] and the target [outer][cols][rows] when `transpose` is 1 (NCHW to NHWC with
// rows = C and cols = H*W, and back with rows = H*W and cols = C), as the source when 0.
//   QUANTIZE: q = clamp(nearbyint(fma(x, 1 / scale, zero_point))), half to even, in float32; NaN gives the smallest q
//   DEQUANTIZE: x = scale * (q - zero_point)
enum qt_storage {
  QT_UINT8 = 0,         // zero_point in 0..255
  QT_INT8 = 1,          // zero_point in -128..127
  QT_INT8_SHIFTED = 2,  // the same numbers stored + 128, as operators have them
};

typedef struct qt_quantize_args {
  int64_t outer, rows, cols;
  int32_t transpose, zero_point;
  float scale;
  int32_t storage;  // qt_storage of the bytes
} qt_quantize_args;

typedef struct qt_copy_args {
  int64_t rows, row_bytes, in_stride, out_stride, in_offset, out_offset;  // bytes
  const uint8_t* lut;  // requantizes u8 on the way, or NULL
} qt_copy_args;

// Copies the rows of a table that are numbered; a number that is no row ends the run with QT_INVALID.
typedef struct qt_gather_args {
  int64_t count, table_rows, row_bytes;
  int32_t index_bytes;  // 4 or 8
  int32_t wrap;         // negative numbers count from the end
} qt_gather_args;

// y[n][target[i]] = x[n][source[i]] for n < outer and i < count, each a row of row_bytes: x is [outer][in_rows][row_bytes], y
// [outer][out_rows][row_bytes]. A source of -1 gives the first element_bytes of fill over and over. Rows of y that no
// target names stay as they are; none is named twice.
typedef struct qt_move_args {
  int64_t outer, count, in_rows, out_rows, row_bytes;
  const int32_t* source;  // [count], or NULL: i
  const int32_t* target;  // [count], or NULL: i
  uint8_t fill[8];
  int32_t element_bytes, reserved;  // 1, 2, 4 or 8
} qt_move_args;

typedef struct qt_permute_args {
  int32_t rank, element_bytes;
  int64_t shape[6];
  int32_t order[6];  // as numpy.transpose
} qt_permute_args;

typedef struct qt_affine_args {
  int64_t rows;
  int32_t channels;
  const float* scale;
  const float* shift;
} qt_affine_args;

typedef struct qt_rows_args {
  int64_t rows;
  int32_t n;
  float eps;
  const float* scale;  // layer norm, [n] or NULL
  const float* shift;
} qt_rows_args;

// Rows of n bytes; formulas in qrows/qrows.h.
typedef struct qt_qrows_args {
  int64_t rows, n;
  int64_t inner;             // mean: of numbers side by side, [rows][n][inner] -> [rows][inner]; else 1
  int32_t shift;             // 128 where the bytes are int8 stored + 128, else 0
  int32_t x_zero, out_zero;  // layer norm; of the bytes less the shift
  float x_scale, out_scale;
  int32_t reserved;
  double eps;
  const float* weight;    // [n] or NULL
  const float* bias;      // [n] or NULL
  const int64_t* powers;  // softmax: [256], of each distance from the row's largest, in 0..2^40
} qt_qrows_args;

// y[n, m, o] = scale * (sum over k of a[n, m, k] * b[n, k, o]) + mask[n, m, o] for every n of four axes. Strides and
// offsets are in elements and not negative; the columns o of y and mask are contiguous, and no two places of y the same.
// QMATMUL, without mask: y = clamp(nearbyint(float(sum over k of (a - a_zero) * (b - b_zero)) * scale) + out_zero).
typedef struct qt_matmul_args {
  int64_t batch[4], rows, inner, columns;
  int64_t a_batch[4], a_row, a_inner, a_offset;
  int64_t b_batch[4], b_inner, b_column, b_offset;
  int64_t mask_batch[4], mask_row, mask_offset;
  int64_t y_batch[4], y_row;
  float scale;
  int32_t mask;  // 1 where it is given
  int32_t a_zero, b_zero, out_zero, reserved;  // QMATMUL
} qt_matmul_args;

enum qt_recurrent_kind { QT_LSTM = 0, QT_GRU = 1, QT_RNN = 2 };

// An LSTM, GRU or RNN layer as ONNX has it: order of the gates, directions, layout (`batch_first` is layout 1), lengths
// of the sequences. With `dynamic` both products are those of QLINEAR_DYNAMIC: x is quantized as a whole (0 where it
// lies behind the end of a sequence), the hidden state of all samples that run at every step.
//
// The output holds, one after another and without gaps: y, the last h, (LSTM) the last c, in ONNX's shapes; and room for
// 6 * batch * hidden + (1 + time) * batch * gates * hidden floats more, and for x once more where it is dynamic and has
// lengths.
typedef struct qt_recurrent_args {
  int32_t kind;
  int32_t time, batch, in_features, hidden;
  int32_t directions;  // 1 or 2; the second is backwards
  int32_t reverse;     // the first is backwards as well
  int32_t batch_first;
  int32_t dynamic, reduce_range, row_wise, fused;  // as in qt_linear_dynamic_args
  int32_t input_forget;         // LSTM: the forget gate is 1 minus the input gate
  int32_t linear_before_reset;  // GRU
  int32_t relu;                 // RNN: instead of tanh
  int32_t lengths_bytes;        // of each length: 0 where there are none, 4 or 8
  int32_t initial_h, initial_c; // 1 where they are given; zeros otherwise
  float clip;                   // of what goes into the functions; infinity for none
  const void* w;                // [directions][gates * hidden][in_features], float32 or int8
  const void* r;                // [directions][gates * hidden][hidden]
  const float* w_scale;         // [directions][gates * hidden], dynamic
  const float* r_scale;
  const float* bias;            // [directions][2][gates * hidden], of w and of r, or NULL
  const float* peephole;        // [directions][3][hidden], LSTM, or NULL
} qt_recurrent_args;

// Training: what changes from step to step is an input, external buffers are read exactly, and no bit depends on the
// number of threads. Formulas are in the headers of the families tconv, tnorm and teltwise. TCONV... take the forward
// convolution's sizes from qt_conv_args, without arrays, clamp and residual; TMAX_POOL_GRAD a pool without adaptive bins.
//
// Over [rows][channels]. The output of TNORM is y and then, each [channels], mean, biased variance and
// 1 / sqrt(variance + eps); that of TNORM_GRAD dx and then dweight and dbias; that of TSUMS [channels].
typedef struct qt_tnorm_args {
  int64_t rows;
  int32_t channels;
  float eps;
} qt_tnorm_args;

// Over [rows][n], each row with its own scale and zero point (a number, as float32).
typedef struct qt_tquant_args {
  int64_t rows, n;
  float low, high;
  int32_t fused, reserved;  // 1: one rounding of x / scale + zero, as of a whole tensor; 0: two, as of channels
} qt_tquant_args;

typedef struct qt_tclamp_args {
  int64_t count;
  float low, high;
} qt_tclamp_args;

// Counts of `count` numbers in equal bins (histogram/histogram.h): within low .. high, low < high, the last one closed; with
// `dyadic` 1 / factor wide, which is a power of two, as many below zero as from there on.
typedef struct qt_histogram_args {
  int64_t count;
  int32_t bins, dyadic;
} qt_histogram_args;

// Loops to measure the machine by, one a chunk, each over `bytes` bytes of its own; ceilings/ceilings.h has the formulas.
enum qt_ceiling_kind { QT_CEILING_INT8 = 0, QT_CEILING_FLOAT = 1, QT_CEILING_READ = 2 };

typedef struct qt_ceiling_args {
  int32_t kind, chunks;
  int64_t bytes, rounds;
} qt_ceiling_args;

#endif  // QTOOL_ARGS_H_
