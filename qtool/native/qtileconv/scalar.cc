// The specification of the kernels.
#include <cstring>

#include "qconv/finish.h"
#include "qtileconv/qtileconv.h"

namespace qtool {
namespace {

int32_t sum(const QtileconvJob& job, const uint8_t* row, const QtileconvPanel& panel, int column) {
  const int vectors = 4 / job.row_tiles;
  uint32_t total = static_cast<uint32_t>(panel.start[column]);
  for (int64_t step = 0; step < job.steps; step++) {
    const int8_t* weight = panel.weight + (step * vectors + column / 16) * 1024 + column % 16 * 4;
    for (int64_t k = 0; k < 64; k++) {
      total += static_cast<uint32_t>(row[job.offsets[step] + k] * weight[k / 4 * 64 + k % 4]);
    }
  }
  return static_cast<int32_t>(total);
}

void run(const QtileconvJob& job) {
  for (int64_t p = 0; p < job.panel_count; p++) {
    const QtileconvPanel& panel = job.panels[p];
    for (int64_t row = 0; row < job.blocks * job.row_tiles * 16; row++) {
      if (job.outputs[row] < 0) continue;
      const uint8_t* bytes = job.tiles[row / 16] + row % 16 * job.pitch;
      for (int column = 0; column < panel.columns; column++) {
        const int64_t at = job.outputs[row] + panel.output + column;
        const uint8_t* residual = job.residual != nullptr ? job.residual + at : nullptr;
        const int32_t total = sum(job, bytes, panel, column);
        job.out[at] = finish_sum(*job.finish, total, panel.bias[column], panel.multiplier[column], residual);
      }
    }
  }
}

void gather(const QtileconvGather& g) {
  for (int64_t row = 0; row < g.count; row++) {
    for (int64_t run = 0; run < g.runs; run++) {
      const uint8_t* from = g.source + row * g.step + g.offsets[run];
      std::memcpy(g.rows + row * g.pitch + run * g.length, from, static_cast<size_t>(g.length));
    }
  }
}

}  // namespace

const QtileconvKernel qtileconv_scalar = {gather, run};

}  // namespace qtool
