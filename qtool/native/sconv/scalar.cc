#include "sconv/sconv.h"

namespace qtool {
namespace {

constexpr int kRows = 4, kColumns = 8;

void run(const SconvTile& tile) {
  for (int row = 0; row < tile.rows; ++row) {
    float* partial = tile.partial + row * kColumns;
    float sum[kColumns] = {};
    for (int c = 0; c < kColumns && !tile.first; ++c) sum[c] = partial[c];
    const float* weight = tile.weight;
    for (int64_t tap = 0; tap < tile.taps; ++tap) {
      const float* pixel = tile.pixels[tap * kRows + row] + tile.offset;
      for (int64_t i = 0; i < tile.length; ++i, weight += kColumns) {
        for (int c = 0; c < kColumns; ++c) sum[c] += pixel[i] * weight[c];
      }
    }
    for (int c = 0; c < kColumns && !tile.last; ++c) partial[c] = sum[c];
    for (int c = 0; c < tile.columns && tile.last; ++c) {
      float y = sum[c] + tile.bias[c];
      if (tile.residual != nullptr) y += tile.residual[row * tile.residual_pitch + c];
      y = y < tile.low ? tile.low : y;  // these two let NaN pass
      tile.out[row * tile.pitch + c] = y > tile.high ? tile.high : y;
    }
  }
}

}  // namespace

const SconvKernel sconv_scalar = {kRows, kColumns, kColumns, run};

}  // namespace qtool
