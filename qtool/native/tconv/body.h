// The kernel in plain C++: each instruction set's file includes this text and the compiler makes vectors of its width out
// of the loops over lanes. No file but those may include it.
#include "core/functions.h"
#include "tconv/depthwise.h"

namespace qtool {
namespace {

template <int Lanes>
static inline void add_lanes(const DepthwiseRun& run, int64_t c) {
  float sum[Lanes];
  for (int lane = 0; lane < Lanes; lane++) sum[lane] = run.sum[c + lane];
  const float *x = run.x + c, *dy = run.dy + c;
  for (int64_t i = 0; i < run.count; i++, x += run.x_step, dy += run.channels) {
    for (int lane = 0; lane < Lanes; lane++) sum[lane] = fused(x[lane], dy[lane], sum[lane]);
  }
  for (int lane = 0; lane < Lanes; lane++) run.sum[c + lane] = sum[lane];
}

static void add_products(const DepthwiseRun& run) {
  int64_t c = 0;
  for (; c + 32 <= run.channels; c += 32) add_lanes<32>(run, c);
  for (; c + 8 <= run.channels; c += 8) add_lanes<8>(run, c);
  for (; c < run.channels; c++) add_lanes<1>(run, c);
}

}  // namespace
}  // namespace qtool
