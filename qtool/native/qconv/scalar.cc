// The specification of the kernels.
#include "qconv/finish.h"
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

void run(const QconvJob& job) {
  for (const QconvTile* tile = job.tiles; tile != job.end; tile++) {
    for (int64_t row = 0; row < tile->rows; row++) {
      const int64_t at = tile->outputs[row];
      for (int column = 0; column < job.columns; column++) {
        const int32_t total = sum(job, *tile, row, column);
        const uint8_t* residual = job.residual != nullptr ? job.residual + at + column : nullptr;
        job.out[at + column] = finish_sum(*job.finish, total, job.bias[column], job.multiplier[column], residual);
      }
    }
  }
}

}  // namespace

const QconvKernel qconv_scalar = {kRows, kColumns, kStep, 4, false, run};

}  // namespace qtool
