// The kernels of the family in plain C++, 64 channels at a time in local arrays: each instruction set's file includes
// this text and the compiler makes vectors of its width out of the inner loops. No file but those may include it.
#include <math.h>

#include "pool/pool.h"

namespace qtool {
namespace {

constexpr int kLanes = 64;

template <class T>
void max_rows(const T* const* x, int64_t taps, int64_t channels, T* out) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    T most[kLanes];
    for (int i = 0; i < kLanes; i++) most[i] = x[0][c + i];
    for (int64_t t = 1; t < taps; t++) {
      const T* row = x[t] + c;
      for (int i = 0; i < kLanes; i++) most[i] = row[i] > most[i] ? row[i] : most[i];
    }
    for (int i = 0; i < kLanes; i++) out[c + i] = most[i];
  }
  for (; c < channels; c++) {
    T most = x[0][c];
    for (int64_t t = 1; t < taps; t++) most = x[t][c] > most ? x[t][c] : most;
    out[c] = most;
  }
}

static inline uint8_t quantized(int32_t sum, const QuantizedAverage& a) {
  const float s = static_cast<float>(sum - a.offset), zero = static_cast<float>(a.zero);
  const float r = a.fused != 0 ? fmaf(s, a.multiplier, zero) : nearbyintf(s * a.multiplier) + zero;
  const float low = r > 0.0f ? r : 0.0f, high = low < 255.0f ? low : 255.0f;
  return static_cast<uint8_t>(static_cast<int32_t>(nearbyintf(high)));
}

void average_rows(const uint8_t* const* x, int64_t taps, int64_t channels, const QuantizedAverage& a, uint8_t* out) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    int32_t sum[kLanes] = {};
    for (int64_t t = 0; t < taps; t++) {
      const uint8_t* row = x[t] + c;
      for (int i = 0; i < kLanes; i++) sum[i] += row[i];
    }
    for (int i = 0; i < kLanes; i++) out[c + i] = quantized(sum[i], a);
  }
  for (; c < channels; c++) {
    int32_t sum = 0;
    for (int64_t t = 0; t < taps; t++) sum += x[t][c];
    out[c] = quantized(sum, a);
  }
}

void average_floats(const float* const* x, int64_t taps, int64_t channels, float divisor, float* out) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    float sum[kLanes] = {};
    for (int64_t t = 0; t < taps; t++) {
      const float* row = x[t] + c;
      for (int i = 0; i < kLanes; i++) sum[i] += row[i];
    }
    for (int i = 0; i < kLanes; i++) out[c + i] = sum[i] / divisor;
  }
  for (; c < channels; c++) {
    float sum = 0.0f;
    for (int64_t t = 0; t < taps; t++) sum += x[t][c];
    out[c] = sum / divisor;
  }
}

constexpr PoolKernels kKernels = {max_rows<uint8_t>, max_rows<float>, average_rows, average_floats};

}  // namespace
}  // namespace qtool
