#include <cmath>

#include "qlinear_dynamic/qlinear_dynamic.h"

namespace qtool {
namespace {

constexpr int kRows = 4, kColumns = 8;

void min_max(const float* x, int64_t count, float range[2]) {
  for (int64_t i = 0; i < count; ++i) {
    if (x[i] < range[0]) range[0] = x[i];
    if (x[i] > range[1]) range[1] = x[i];
  }
}

void quantize(const float* x, int64_t count, float inverse_scale, int32_t zero, void* q) {
  for (int64_t i = 0; i < count; ++i) {
    const float y = std::fma(x[i], inverse_scale, static_cast<float>(zero));
    const float clamped = y > 0 ? (y < 255 ? y : 255) : 0;  // NaN gives 0
    static_cast<uint8_t*>(q)[i] = static_cast<uint8_t>(std::nearbyint(clamped));
  }
}

void run(const QlinearDynamicTile& tile) {
  for (int row = 0; row < tile.rows; ++row) {
    const uint8_t* q = static_cast<const uint8_t*>(tile.q) + row * tile.q_bytes;
    uint32_t sum[kColumns] = {};
    for (int64_t k = 0; k < tile.groups; ++k) {
      for (int c = 0; c < kColumns; ++c) sum[c] += static_cast<uint32_t>(q[k] * tile.weight[k * kColumns + c]);
    }
    for (int c = 0; c < tile.columns; ++c) {
      const uint32_t zero = static_cast<uint32_t>(tile.x_zero[row]) * static_cast<uint32_t>(tile.sums[c]);
      const float acc = static_cast<float>(static_cast<int32_t>(sum[c] - zero));
      const float scale = tile.x_scale[row] * tile.scale[c];
      float y = tile.fused ? std::fma(acc, scale, tile.bias[c]) : acc * scale + tile.bias[c];
      y = y < tile.low ? tile.low : y;  // these two let NaN pass
      tile.out[row * tile.pitch + c] = y > tile.high ? tile.high : y;
    }
  }
}

}  // namespace

const QlinearDynamicKernel qlinear_dynamic_scalar = {
    kRows, kColumns, kColumns, 1, 1, 1, 1, 1, min_max, quantize, run};

}  // namespace qtool
