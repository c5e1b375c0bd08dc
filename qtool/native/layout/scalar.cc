// The specification of the family: every other file gives these bytes.
#include <math.h>

#include "layout/layout.h"

namespace qtool {
namespace {

void quantize(const float* x, uint8_t* q, int64_t count, const QuantizeScale& s) {
  const float zero = static_cast<float>(s.zero - s.shift);
  const float low = static_cast<float>(-s.shift), high = static_cast<float>(255 - s.shift);
  for (int64_t i = 0; i < count; i++) {
    float value = fmaf(x[i], s.inverse, zero);
    value = value > low ? value : low;  // so written that NaN becomes `low`
    value = value < high ? value : high;
    q[i] = static_cast<uint8_t>((static_cast<int32_t>(nearbyintf(value)) + s.shift) ^ s.flip);
  }
}

void dequantize(const uint8_t* q, float* x, int64_t count, const QuantizeScale& s) {
  for (int64_t i = 0; i < count; i++) x[i] = s.scale * static_cast<float>((q[i] ^ s.flip) - s.zero);
}

template <class T>
void transpose(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c++) {
    for (int64_t r = 0; r < rows; r++) y[c * y_stride + r] = x[r * x_stride + c];
  }
}

}  // namespace

const LayoutKernels layout_scalar = {quantize, dequantize, transpose<uint8_t>, transpose<uint32_t>};

}  // namespace qtool
