// The kernels of the gradient of depthwise weights.
//
//   sum[c] += sum over i of x[i * x_step + c] * dy[i * channels + c], fused, in the order of i
//
// Nothing is read or written past `channels`. This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

struct DepthwiseRun {
  const float* x;
  const float* dy;
  int64_t count, channels, x_step;
  float* sum;
};

using DepthwiseKernel = void (*)(const DepthwiseRun& run);

#define QT_KERNEL(isa, name, tile) void name(const DepthwiseRun& run);
#include "tconv/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
