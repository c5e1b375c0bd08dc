// The C face of qtool's engine: make a plan from a flat description, run it, free it.
//
// A plan is a list of operators over numbered buffers. Activations of rank 4 are NHWC and of rank 3 (convolution) NLC,
// dense, without padding between pixels; everything else is row-major. Quantized activations are uint8 (int8 ones are
// shifted by 128 before they come here, which is exact), weights int8 with zero point 0.
//
// Every function may be called from any thread; one plan runs one inference at a time.
//
// Operators may read up to 4096 bytes past the end of what they read in the arena, which has as much behind it. External
// buffers are read by QUANTIZE, DEQUANTIZE, COPY, PERMUTE, GATHER, MOVE, SMATMUL, QMATMUL, SPOOL, HISTOGRAM and those of
// training (QT_OP_T...) exactly; any other operator needs that slack there too.
// The output of LUT, SUNARY, QBINARY, SBINARY, SAFFINE, TAFFINE, TFAKE_QUANT, TCLAMP and TADD may be the very
// bytes of their first input; every other output must lie apart from the inputs.
#ifndef QTOOL_H_
#define QTOOL_H_

#include <stdint.h>

#include "qtool_args.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QT_ABI 7
#define QT_API __attribute__((visibility("default")))
#define QT_MAX_INPUTS 4

enum qt_status { QT_OK = 0, QT_INVALID = 1, QT_NO_MEMORY = 2, QT_UNSUPPORTED = 3 };

// In order of preference, least first. A plan made for one ISA uses rows of that one and of all before it, but for those
// of AVX-VNNI, which only plans made for it use: CPUs with AVX512-VNNI need not have it.
enum qt_isa {
  QT_ISA_SCALAR = 0,
  QT_ISA_AVX2 = 1,
  QT_ISA_AVXVNNI = 2,
  QT_ISA_AVX512VNNI = 3,
  QT_ISA_AMX = 4,
  QT_ISA_COUNT = 5
};

enum qt_buffer_kind {
  QT_BUFFER_ARENA = 0,     // inside the plan's arena, at `offset`
  QT_BUFFER_EXTERNAL = 1,  // bound at each run, in order of appearance
};

typedef struct qt_buffer {
  int32_t kind;
  int32_t reserved;
  int64_t offset;  // bytes from the arena's start, a multiple of 64
  int64_t bytes;
  int64_t piece_bytes;  // where a plan works in pieces: from one piece to the next, 0 for the same bytes each time
} qt_buffer;

enum qt_op_kind {
  QT_OP_QCONV = 0,           // qt_conv_args: u8 x s8 -> u8; in: x [, residual]
  QT_OP_SCONV = 1,           // qt_conv_args: float32; in: x [, residual]
  QT_OP_QLINEAR_DYNAMIC = 2, // qt_linear_dynamic_args: float32 x s8 -> float32
  QT_OP_QBINARY = 3,         // qt_binary_args: u8, u8 -> u8
  QT_OP_SBINARY = 4,         // qt_binary_args: float32
  QT_OP_LUT = 5,             // qt_lut_args: u8 -> u8
  QT_OP_SUNARY = 6,          // qt_unary_args: float32
  QT_OP_QPOOL = 7,           // qt_pool_args: u8
  QT_OP_SPOOL = 8,           // qt_pool_args: float32
  QT_OP_QUANTIZE = 9,        // qt_quantize_args: float32 -> u8, with a permutation
  QT_OP_DEQUANTIZE = 10,     // qt_quantize_args: u8 -> float32, with a permutation
  QT_OP_COPY = 11,           // qt_copy_args: rows of bytes with strides (concat, slice)
  QT_OP_PERMUTE = 12,        // qt_permute_args
  QT_OP_SAFFINE = 13,        // qt_affine_args: y = x * scale[c] + shift[c], float32
  QT_OP_SSOFTMAX = 14,       // qt_rows_args: softmax over rows of n float32
  QT_OP_SLAYERNORM = 15,     // qt_rows_args
  QT_OP_RECURRENT = 16,      // qt_recurrent_args: float32; in: x [, lengths] [, initial h] [, initial c]
  QT_OP_SMATMUL = 17,        // qt_matmul_args: float32; in: a, b [, mask]
  QT_OP_CEILING = 18,        // qt_ceiling_args: what the machine can do at most
  QT_OP_GATHER = 19,         // qt_gather_args: rows of a table by number; in: numbers, table
  QT_OP_MOVE = 20,           // qt_move_args: rows of bytes by index (pad, resize to nearest, interleave)
  QT_OP_QSOFTMAX = 21,       // qt_qrows_args: u8 -> float32
  QT_OP_QMEAN = 22,          // qt_qrows_args: u8
  QT_OP_QLAYERNORM = 23,     // qt_qrows_args: u8
  QT_OP_QMATMUL = 24,        // qt_matmul_args: u8, u8 -> u8
  QT_OP_TCONV = 25,              // qt_conv_args: float32 for training; in: x, weight, bias
  QT_OP_TCONV_INPUT_GRAD = 26,   // qt_conv_args; in: dy, weight
  QT_OP_TCONV_WEIGHT_GRAD = 27,  // qt_conv_args; in: x, dy
  QT_OP_TNORM = 28,                   // qt_tnorm_args: float32, batch norm by the batch; in: x, factors [2][C]: weight, bias
  QT_OP_TNORM_GRAD = 29,              // qt_tnorm_args; in: x, dy, factors [3][C]: mean, inv_std, weight
  QT_OP_TSUMS = 30,                   // qt_tnorm_args: sums of channels
  QT_OP_TAFFINE = 31,                 // qt_tnorm_args; in: x, factors [2][C]: scale, shift
  QT_OP_TFAKE_QUANT = 32,             // qt_tquant_args: float32; in: x, grid [2][rows]: scale, zero point
  QT_OP_TFAKE_QUANT_GRAD = 33,        // qt_tquant_args; in: x, dy, grid
  QT_OP_TFAKE_QUANT_SCALE_GRAD = 34,  // qt_tquant_args; in: x, dy, grid -> [rows]
  QT_OP_TMIN_MAX = 35,                // qt_tquant_args -> [2][rows]
  QT_OP_TCLAMP = 36,                  // qt_tclamp_args: float32
  QT_OP_TCLAMP_GRAD = 37,             // qt_tclamp_args; in: x or y, dy
  QT_OP_TADD = 38,                    // qt_tclamp_args: clamp(a + b)
  QT_OP_TMAX_POOL_GRAD = 39,          // qt_pool_args: float32; in: x, dy -> dx
  QT_OP_HISTOGRAM = 40,               // qt_histogram_args: float32; in: x, [low, high] or [factor] -> int64 [bins]
  QT_OP_COUNT = 41,
};

typedef struct qt_op {
  int32_t kind;
  int32_t input_count;
  int32_t inputs[QT_MAX_INPUTS];
  int32_t output;
  int32_t reserved;
  const void* args;    // of the kind's struct; read while the plan is made, not kept
  const char* kernel;  // NULL, or the one kernel row to use (tests, benchmarks)
} qt_op;

// The first `piece_ops` operators run `pieces` times, the last of them before the first of the next piece: so the
// results of a part of a batch, all of which would not fit a cache, are read while they are near.
typedef struct qt_plan_desc {
  int32_t abi, isa, threads, buffer_count, op_count;
  int32_t pieces, piece_ops;  // 1, 0 for none
  int32_t reserved;
  int64_t arena_bytes;
  const qt_buffer* buffers;
  const qt_op* ops;
} qt_plan_desc;

typedef struct qt_plan qt_plan;

// All give a qt_status; on failure `error` (of `error_bytes`) holds one line of text.
QT_API int32_t qt_plan_create(const qt_plan_desc* desc, qt_plan** plan, char* error, int64_t error_bytes);
// `external` has one pointer an external buffer, in order. No allocation, no lock but the pool's.
QT_API int32_t qt_plan_run(qt_plan* plan, void* const* external, char* error, int64_t error_bytes);
// As qt_plan_run; adds the seconds of each operator to `seconds` [op_count].
QT_API int32_t qt_plan_profile(qt_plan* plan, void* const* external, double* seconds, char* error, int64_t error_bytes);
// Runs the operators first .. last - 1 only. After them a buffer of the arena that they have written can be read at the
// address that qt_plan_address gives (NULL for external ones), until operators that run later take its place.
QT_API int32_t qt_plan_run_part(qt_plan* plan, void* const* external, int32_t first, int32_t last, char* error,
                                int64_t error_bytes);
QT_API const void* qt_plan_address(const qt_plan* plan, int32_t buffer);
QT_API const char* qt_plan_kernel(const qt_plan* plan, int32_t op);  // name of the row that op runs on
QT_API int64_t qt_plan_bytes(const qt_plan* plan);                   // arena, packed weights and scratch
QT_API void qt_plan_free(qt_plan* plan);

QT_API int32_t qt_abi(void);
QT_API int32_t qt_op_supported(int32_t kind);   // 1 when this library has a family for the qt_op_kind
QT_API int64_t qt_struct_bytes(const char* name);  // sizeof a struct of this header, -1 for an unknown name
QT_API int32_t qt_isa_supported(int32_t isa);  // 1 when this CPU and its operating system run it
// Why this machine does not run an ISA, or that it is emulated; "" where there is nothing to say.
QT_API const char* qt_isa_note(int32_t isa);
// Every kernel row, one a line: "family isa name tile". Gives the bytes needed, writes at most `bytes`.
QT_API int64_t qt_kernels(char* text, int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif  // QTOOL_H_
