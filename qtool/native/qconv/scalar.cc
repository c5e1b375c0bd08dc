// The specification of the kernels.
#include <cmath>

#include "qconv/qconv.h"

namespace qtool {
namespace {

constexpr int kRows = 4, kColumns = 16, kStep = 4;

int32_t sum(const QconvJob& job, const QconvTile& tile, int64_t row, int column) {
  uint32_t total = static_cast<uint32_t>(job.start[column]);
  for (int64_t tap = 0; tap < job.taps; tap++) {
    const int8_t* weight = static_cast<const int8_t*>(job.weight) + job.taken[tap] * job.tap_bytes + column * 4;
    const uint8_t* pixel = tile.pixels[tap * tile.step + row] + tile.offsets[tap] + job.offset;
    for (int64_t i = 0; i < job.length; i += 4, weight += job.vectors * kStep * 4) {
      for (int j = 0; j < 4; j++) total += static_cast<uint32_t>(pixel[i + j] * weight[j]);
    }
  }
  return static_cast<int32_t>(total);
}

uint8_t finish(const QconvJob& job, int64_t at, int column, int32_t total) {
  const QconvFinish& f = *job.finish;
  float r = (static_cast<float>(total) + job.bias[column]) * job.multiplier[column];
  if (job.residual != nullptr) {
    r += (static_cast<float>(job.residual[at + column]) - f.res_zero) * f.res_multiplier;
  }
  const float clamped = r > f.low ? (r < f.high ? r : f.high) : f.low;
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(clamped)) + f.out_zero);
}

void run(const QconvJob& job) {
  for (const QconvTile* tile = job.tiles; tile != job.end; tile++) {
    for (int64_t row = 0; row < tile->rows; row++) {
      const int64_t at = tile->outputs[row];
      for (int column = 0; column < job.columns; column++) {
        job.out[at + column] = finish(job, at, column, sum(job, *tile, row, column));
      }
    }
  }
}

}  // namespace

const QconvKernel qconv_scalar = {kRows, kColumns, kStep, 1, false, run};

}  // namespace qtool
