// Softmax and layer norm over rows of n float32, n >= 1; y may be x.
//
//   softmax     y[i] = exp(x[i] - max(x)) / (sum over j of exp(x[j] - max(x)))
//   layer_norm  y[i] = (x[i] - mean) / sqrt(variance + eps) * scale[i] + shift[i], variance the mean of (x - mean)^2
//
// Sums are taken in double. A row with NaN or with an infinite maximum gives NaN. exp is within 2 units in the last
// place, small results are subnormal and not zero.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

struct SrowsKernels {
  void (*softmax)(const float* x, float* y, int64_t n);
  void (*layer_norm)(const float* x, float* y, int64_t n, float eps, const float* scale, const float* shift);
};

#define QT_KERNEL(isa, name, tile) extern const SrowsKernels name;
#include "srows/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
