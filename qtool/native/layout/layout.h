// Layout: quantize and dequantize, with or without a transposition, and copies and permutations of elements.
//
// With x float32, q a byte and s = 1 / scale in float32:
//   quantize    b = nearbyint(clamp(fma(x, s, zero - shift), -shift, 255 - shift)) + shift, half to even, one rounding for
//               product and sum as PyTorch has it; NaN gives the smallest b; q = b ^ flip
//   dequantize  x = scale * float((q ^ flip) - zero)
// For uint8 shift and flip are 0. For int8 shift is 128, since where the sum is rounded depends on the zero point, and
// zero the zero point + 128; flip is 0x80 where the bytes are int8 and 0 where they are stored shifted by 128.
//   transpose   y[c * y_stride + r] = x[r * x_stride + c] for r < rows, c < cols; strides in elements
//
// No alignment is needed, and nothing is read or written beyond what the formulas name: these kernels work on the
// caller's own arrays. This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

namespace qtool {

struct QuantizeScale {
  float scale, inverse;
  int32_t zero, shift;  // zero in 0..255
  uint8_t flip;
};

struct LayoutKernels {
  void (*quantize)(const float* x, uint8_t* q, int64_t count, const QuantizeScale& s);
  void (*dequantize)(const uint8_t* q, float* x, int64_t count, const QuantizeScale& s);
  void (*transpose8)(const uint8_t* x, int64_t x_stride, uint8_t* y, int64_t y_stride, int64_t rows, int64_t cols);
  void (*transpose32)(const uint32_t* x, int64_t x_stride, uint32_t* y, int64_t y_stride, int64_t rows, int64_t cols);
};

#define QT_KERNEL(isa, name, tile) extern const LayoutKernels name;
#include "layout/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
