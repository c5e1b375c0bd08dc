// The specification of the kernels.
#include <cmath>

#include "qconv/qconv.h"

namespace qtool {
namespace {

constexpr int kRows = 4, kColumns = 16, kStep = 4;

int32_t sum(const QconvTile& tile, int row, int column) {
  const int width = tile.vectors * kStep;
  const int8_t* weight = static_cast<const int8_t*>(tile.weight) + column * 4;
  uint32_t total = static_cast<uint32_t>(tile.start[column]);
  for (int64_t tap = 0; tap < tile.taps; tap++) {
    const uint8_t* pixel = tile.pixels[tap * kRows + row] + tile.offset;
    for (int64_t i = 0; i < tile.length; i += 4, weight += width * 4) {
      for (int j = 0; j < 4; j++) total += static_cast<uint32_t>(pixel[i + j] * weight[j]);
    }
  }
  return static_cast<int32_t>(total);
}

uint8_t finish(const QconvTile& tile, int row, int column, int32_t total) {
  const QconvFinish& f = *tile.finish;
  float r = (static_cast<float>(total) + tile.bias[column]) * tile.multiplier[column];
  if (tile.residual != nullptr) {
    r += (static_cast<float>(tile.residual[row * tile.pitch + column]) - f.res_zero) * f.res_multiplier;
  }
  const float clamped = r > f.low ? (r < f.high ? r : f.high) : f.low;
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(clamped)) + f.out_zero);
}

void run(const QconvTile& tile) {
  for (int row = 0; row < tile.rows; row++) {
    for (int column = 0; column < tile.columns; column++) {
      tile.out[row * tile.pitch + column] = finish(tile, row, column, sum(tile, row, column));
    }
  }
}

}  // namespace

const QconvKernel qconv_scalar = {kRows, kColumns, kStep, 1, run};

}  // namespace qtool
