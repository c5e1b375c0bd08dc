// Elementwise operators of training in float32. With r the integer of x before it is clamped:
//   r = nearbyint(fma(x, 1 / scale, zero)) with `fused`, nearbyint(x * (1 / scale) + zero) without (see QParams)
//   quantize       y = scale * (clamp(r, low, high) - zero); NaN becomes low
//   quantize_grad  dx = dy where low <= r <= high, 0 elsewhere
//   scale_grad     sum of dy * (r - zero - x / scale where low <= r <= high, clamp(r, low, high) - zero elsewhere)
//   extremes       the smallest and the largest; NaN where there is one; infinity, -infinity of nothing
//   clamp, add     y = clamp(x, low, high), y = clamp(a + b, low, high); NaN stays NaN
//   clamp_grad     dy, and 0 where x <= low or x >= high (PyTorch's relu, relu6, hardtanh); infinite limits cut nothing
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
