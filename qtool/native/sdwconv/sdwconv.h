// Float32 depthwise convolution over NHWC: every channel by itself.
//
//   y[p, c] = clamp(sum over t of a[p, t, c] * w[t, c] + bias[c] (+ residual[p, c]), low, high)
//
//   p  output pixel of a strip: up to `pixels` neighbours in one row; t  tap (ky, kx); c  channel, 0..channels-1
//
// The taps of a strip's first pixel have a pointer each; those of the next pixel lie `step` floats further on. Rows
// outside of the picture point to zeros; a strip with columns outside has one pixel. Weights are packed [t][width] with
// the channels rounded up to `lanes` and filled with zeros; input, residual and output are not touched past `channels`.
// Every sum is one chain of additions in the order of the taps that starts at 0: rows of one kernel give the same bits
// however the picture is cut.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

struct SdwconvStrip {
  const float* const* input;  // [taps]
  int64_t taps, step;
  int pixels;                 // 1..kernel.pixels
  int64_t channels, width;
  const float* weight;        // [taps][width]
  const float* bias;          // [width]
  const float* residual;      // [pixels][channels], or NULL
  float* out;                 // [pixels][channels]
  float low, high;
};

struct SdwconvKernel {
  int pixels, lanes;
  void (*run)(const SdwconvStrip& strip);
};

#define QT_KERNEL(isa, name, tile) extern const SdwconvKernel name;
#include "sdwconv/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
