// The kernels of the family in plain C++: each instruction set's file includes this text and the compiler makes vectors
// of its width out of the loops. No file but those may include it.
#include "qrows/qrows.h"

namespace qtool {
namespace {

constexpr int64_t kBlock = 1024;

void softmax(const uint8_t* x, float* y, int64_t n, const int64_t* powers) {
  int most = 0;
  for (int64_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
  int64_t sum = 0;
  for (int64_t i = 0; i < n; i++) sum += powers[most - x[i]];
  const double whole = static_cast<double>(sum);
  for (int64_t i = 0; i < n; i++) y[i] = static_cast<float>(static_cast<double>(powers[most - x[i]]) / whole);
}

static inline uint8_t mean_of(int32_t sum, int64_t n, int shift) {
  const float centred = static_cast<float>(sum - static_cast<int32_t>(n) * shift);
  return static_cast<uint8_t>(static_cast<int32_t>(__builtin_rintf(centred / static_cast<float>(n))) + shift);
}

void mean(const uint8_t* x, uint8_t* y, int64_t n, int64_t inner, int shift) {
  if (inner == 1) {
    int32_t sum = 0;
    for (int64_t j = 0; j < n; j++) sum += x[j];
    y[0] = mean_of(sum, n, shift);
    return;
  }
  int32_t sums[kBlock];
  for (int64_t first = 0; first < inner; first += kBlock) {
    const int64_t size = inner - first < kBlock ? inner - first : kBlock;
    for (int64_t i = 0; i < size; i++) sums[i] = 0;
    for (int64_t j = 0; j < n; j++) {
      const uint8_t* row = x + j * inner + first;
      for (int64_t i = 0; i < size; i++) sums[i] += row[i];
    }
    for (int64_t i = 0; i < size; i++) y[first + i] = mean_of(sums[i], n, shift);
  }
}

void layer_norm(const uint8_t* x, uint8_t* y, const qt_qrows_args& a) {
  int64_t sum = 0, squares = 0;
  for (int64_t first = 0; first < a.n; first += kBlock) {
    const int64_t last = a.n - first < kBlock ? a.n : first + kBlock;
    int32_t part = 0, part_squares = 0;
    for (int64_t i = first; i < last; i++) {
      const int32_t b = x[i] - a.shift;
      part += b;
      part_squares += b * b;
    }
    sum += part;
    squares += part_squares;
  }
  const float n = static_cast<float>(a.n), zero = static_cast<float>(a.x_zero);
  const float mean = static_cast<float>(sum) / n;
  const float spread = static_cast<float>(squares) / n - mean * mean;
  const float variance = spread > 0.0f ? spread : 0.0f;
  const double deviation = __builtin_sqrt(static_cast<double>(variance * a.x_scale * a.x_scale) + a.eps);
  const float factor = static_cast<float>(static_cast<double>(a.x_scale) / deviation), middle = mean - zero;
  const float inverse = 1.0f / a.out_scale;
  const float low = static_cast<float>(-a.shift), high = static_cast<float>(255 - a.shift);
  const float out_zero = static_cast<float>(a.out_zero);
  for (int64_t i = 0; i < a.n; i++) {
    float r = (static_cast<float>(x[i] - a.shift - a.x_zero) - middle) * factor;
    if (a.weight != nullptr) r = r * a.weight[i];
    if (a.bias != nullptr) r = r + a.bias[i];
    float q = __builtin_rintf(r * inverse) + out_zero;
    q = q > low ? q : low;
    q = q < high ? q : high;
    y[i] = static_cast<uint8_t>(static_cast<int32_t>(q) + a.shift);
  }
}

void dot(const int16_t* a, const int16_t* b, int64_t step, int64_t n, int32_t* sums) {
  const int16_t *b0 = b, *b1 = b + step, *b2 = b + 2 * step, *b3 = b + 3 * step;
  int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (int64_t k = 0; k < n; k++) {
    s0 += a[k] * b0[k];
    s1 += a[k] * b1[k];
    s2 += a[k] * b2[k];
    s3 += a[k] * b3[k];
  }
  sums[0] = s0;
  sums[1] = s1;
  sums[2] = s2;
  sums[3] = s3;
}

constexpr QrowsKernels kKernels = {softmax, mean, layer_norm, dot};

}  // namespace
}  // namespace qtool
