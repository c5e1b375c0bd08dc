// Rows of two quantized tensors combined: the arithmetic of QT_OP_QBINARY, shared with the epilogue of convolutions.
//
// Float arithmetic, all in float32, every operation rounded by itself but the fused multiply-adds:
//   da = fma(a_scale, float(a), -(a_scale * float(a_zero))), db alike; r = op(da, db) * inv_scale
//   q = nearbyint(clamp(r, out_min - out_zero, out_max - out_zero)) + out_zero        half to even; NaN gives out_min
// Fixed point (QNNPACK's add), in int32 modulo 2^32:
//   s = a_multiplier * a + b_multiplier * b + offset
//   q = clamp(s / 2^shift, rounded half away from zero, + out_zero, out_min, out_max)
//
// No alignment is needed; nothing is read or written outside of the block. `out` may be `a` or `b` itself.
// This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

// Row r, column c of a is a[r * a_pitch + c]; a pitch of 0 uses one row for all.
struct QbinaryBlock {
  const uint8_t* a;
  const uint8_t* b;
  uint8_t* out;
  int64_t a_pitch, b_pitch, out_pitch;
  int64_t rows, columns;
};

// The same block as a single row where its rows follow one another without gaps.
static inline QbinaryBlock qbinary_joined(QbinaryBlock block) {
  if (block.a_pitch != block.columns || block.b_pitch != block.columns || block.out_pitch != block.columns) return block;
  block.columns *= block.rows;
  block.rows = block.rows != 0 ? 1 : 0;
  return block;
}

// Reads the arithmetic of `args`, not its shape.
using QbinaryRows = void (*)(const qt_binary_args& args, const QbinaryBlock& block);

void qbinary_rows_scalar(const qt_binary_args& args, const QbinaryBlock& block);
#if QT_X86
void qbinary_rows_avx2(const qt_binary_args& args, const QbinaryBlock& block);
void qbinary_rows_avx512vnni(const qt_binary_args& args, const QbinaryBlock& block);
#endif

// The fastest of them that a CPU with `isa` runs.
QbinaryRows qbinary_rows(int isa);

// Whether every r is within the range of int32, so that it may be clamped after it is rounded.
bool qbinary_fits(const qt_binary_args& args);

// Whether the arithmetic is one that the rows can do: kind, shift, zero points and bounds in range, numbers finite.
bool qbinary_arithmetic_is_sound(const qt_binary_args& args);

}  // namespace qtool
