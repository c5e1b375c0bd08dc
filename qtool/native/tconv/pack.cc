#include "tconv/pack.h"

#include <algorithm>
#include <cstring>

namespace qtool {
namespace {

constexpr int64_t kChunkFloats = 8192;

// Calls f(panel, k of the first, how many k) for parts of all panels, on all threads.
template <class F>
void each_part(ThreadPool* pool, const SconvProduct& product, const SconvKernel& kernel, const F& f) {
  const int64_t depth = product.depth(), most = std::max<int64_t>(1, kChunkFloats / kernel.columns);
  const int64_t parts = (depth + most - 1) / most;
  pool->parallel(parts * static_cast<int64_t>(product.panels().size()), [&](int64_t chunk, int) {
    const int64_t first = chunk % parts * most;
    f(product.panels()[chunk / parts], first, std::min(most, depth - first));
  });
}

}  // namespace

void pack_forward(ThreadPool* pool, const SconvProduct& product, const SconvKernel& kernel, const LayoutKernels& layout,
                  const float* weight, const float* bias) {
  const int64_t depth = product.depth();
  each_part(pool, product, kernel, [&](const SconvPanel& panel, int64_t first, int64_t count) {
    const int64_t width = int64_t{panel.vectors} * kernel.step;
    layout.transpose32(reinterpret_cast<const uint32_t*>(weight + panel.output * depth + first), depth,
                       reinterpret_cast<uint32_t*>(panel.weight + first * width), width, panel.columns, count);
    if (first == 0) std::memcpy(panel.bias, bias + panel.output, panel.columns * 4);
  });
}

void pack_backward(ThreadPool* pool, const SconvProduct& product, const SconvKernel& kernel, const BackwardPack& pack,
                   const float* weight) {
  each_part(pool, product, kernel, [&](const SconvPanel& panel, int64_t first, int64_t count) {
    const int64_t width = int64_t{panel.vectors} * kernel.step, group = panel.output / pack.inputs;
    const float* from = weight + group * pack.outputs * pack.weight_taps * pack.inputs + panel.output % pack.inputs;
    for (int64_t k = first; k < first + count; k++) {
      const int64_t output = k % pack.outputs, tap = pack.taps[k / pack.outputs];
      std::memcpy(panel.weight + k * width, from + (output * pack.weight_taps + tap) * pack.inputs, panel.columns * 4);
    }
  });
}

}  // namespace qtool
