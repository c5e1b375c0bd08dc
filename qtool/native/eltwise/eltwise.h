// Elementwise operators in float32, and tables over bytes.
//
//   binary  y[i] = clamp(op(a[i], b[i]), low, high); with b_step 0 one b for all
//   unary   y[i] = f(x[i]), see qt_unary_kind
//   lut     y[i] = table[x[i]]
// NaN passes through a clamp as in max(low, min(x, high)) of the C operators: it becomes `low`.
// This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

struct BinaryRow {
  int kind, b_step;  // qt_binary_kind; 0 or 1
  float low, high;
};

struct EltwiseKernels {
  void (*binary)(const float* a, const float* b, float* y, int64_t count, const BinaryRow& row);
  void (*unary)(const float* x, float* y, int64_t count, int kind, float a, float b);
  void (*lut)(const uint8_t* x, uint8_t* y, int64_t count, const uint8_t* table);
};

#define QT_KERNEL(isa, name, tile) extern const EltwiseKernels name;
#include "eltwise/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
