// Pools over NHWC: the maximum or the average of the pixels under a window, channel by channel.
//
//   out[c] = max over t < taps of x_t[c]
//   out[c] = float32: (sum over t of x_t[c]) / divisor, summed in the order of the taps
//            u8:      q = nearbyint(clamp(r)) (+ zero), half to even, with s = float(sum over t of x_t[c] - taps * x_zero):
//                     fused (adaptive bins): r = fma(s, multiplier, zero); else r = s * multiplier and zero added after
// where x_t is the row of channels of one pixel under the window. Sums of u8 are exact in int32 for up to 2^23 taps.
// This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

namespace qtool {

struct QuantizedAverage {
  float multiplier;  // x_scale / (out_scale * divisor)
  int32_t offset;    // taps * x_zero
  int32_t zero, fused;
};

// `taps` pointers to the pixels under the window; each has `channels` elements.
struct PoolKernels {
  void (*max_u8)(const uint8_t* const* x, int64_t taps, int64_t channels, uint8_t* out);
  void (*max_f32)(const float* const* x, int64_t taps, int64_t channels, float* out);
  void (*average_u8)(const uint8_t* const* x, int64_t taps, int64_t channels, const QuantizedAverage& a, uint8_t* out);
  void (*average_f32)(const float* const* x, int64_t taps, int64_t channels, float divisor, float* out);
  // Adds dy to dx of the first of the largest x, channel by channel.
  void (*add_max_grad)(const float* const* x, float* const* dx, int64_t taps, int64_t channels, const float* dy);
};

#define QT_KERNEL(isa, name, tile) extern const PoolKernels name;
#include "pool/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
