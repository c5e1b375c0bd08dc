// Softmax, means and layer norm over bytes, and products of two matrices of bytes. b is a byte less `shift`: 0, or 128 where
// the bytes are int8 stored + 128.
//
//   softmax     y[i] = float(e[m - b[i]] / sum over j of e[m - b[j]])   m the largest, e whole numbers, their quotient in double
//   mean        y[i] = nearbyint(float(sum over j of b[j][i]) / float(n)) + shift   x is [n][inner]
//   layer_norm  mean = float(sum b) / float(n), variance = max(float(sum b^2) / float(n) - mean * mean, 0)
//               factor = float(double(x_scale) / sqrt(double(variance * x_scale * x_scale) + eps))
//               y[i] = nearbyint(((b[i] - x_zero - (mean - x_zero)) * factor * scale[i] + bias[i]) * inverse) + out_zero
//   dot         sums[c] = sum over k of a[k] * b[c * step + k], c < 4, n a multiple of 32
//
// All in float32 unless it says double, each operation rounded by itself, half to even; sums are exact.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

struct QrowsKernels {
  void (*softmax)(const uint8_t* x, float* y, int64_t n, const int64_t* powers);
  void (*mean)(const uint8_t* x, uint8_t* y, int64_t n, int64_t inner, int shift);
  void (*layer_norm)(const uint8_t* x, uint8_t* y, const qt_qrows_args& args);
  void (*dot)(const int16_t* a, const int16_t* b, int64_t step, int64_t n, int32_t* sums);
};

#define QT_KERNEL(isa, name, tile) extern const QrowsKernels name;
#include "qrows/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
