// y[r, c] = x[r, c] * scale[c] + shift[c] over dense rows of float32; the product and the sum are rounded each, on every
// instruction set. y may be x.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

// `rows` rows of `channels`.
using SaffineKernel = void (*)(const float* x, float* y, int64_t rows, int64_t channels, const float* scale,
                               const float* shift);

#define QT_KERNEL(isa, name, tile) \
  void name(const float* x, float* y, int64_t rows, int64_t channels, const float* scale, const float* shift);
#include "saffine/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
