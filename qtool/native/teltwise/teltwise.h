// Elementwise operators of training in float32; qtool.h has the formulas (qt_tquant_args, qt_tclamp_args).
//
// Sums and extremes are taken in kLanes chains, element i in chain i % kLanes, and the chains put together in their order:
// the same bits on every instruction set. This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

struct Grid {
  float scale, inverse, zero, low, high;
  int fused;
};

struct Extremes {
  float low, high;
};

struct TeltwiseKernels {
  void (*quantize)(const float* x, float* y, int64_t count, const Grid& grid);
  void (*quantize_grad)(const float* x, const float* dy, float* dx, int64_t count, const Grid& grid);
  double (*scale_grad)(const float* x, const float* dy, int64_t count, const Grid& grid);
  Extremes (*extremes)(const float* x, int64_t count);
  void (*clamp)(const float* x, float* y, int64_t count, float low, float high);
  void (*clamp_grad)(const float* x, const float* dy, float* dx, int64_t count, float low, float high);
  void (*add)(const float* a, const float* b, float* y, int64_t count, float low, float high);
};

#define QT_KERNEL(isa, name, tile) extern const TeltwiseKernels name;
#include "teltwise/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
