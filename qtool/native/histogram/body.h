// The kernels in plain C++: each instruction set's file includes this text and the compiler makes vectors of its width out of
// the loops that find the bins. No file but those may include it.
#include "histogram/histogram.h"

namespace qtool {
namespace {

constexpr int64_t kBlock = 512;

// The limits are kept in float32, where NaN fails both comparisons.
void find_between(const float* x, int64_t n, const HistogramBins& bins, int32_t* found) {
  const float low = bins.low, width = bins.width, count = static_cast<float>(bins.count);
  for (int64_t i = 0; i < n; i++) {
    const float place = (x[i] - low) * count / width;
    const float above = place > 0.0f ? place : 0.0f;
    found[i] = static_cast<int32_t>(above < count ? above : count);
  }
}

// A number that is cut to an integer is one above the largest integer below it, where it is negative and none itself.
void find_dyadic(const float* x, int64_t n, const HistogramBins& bins, int32_t* found) {
  const int32_t half = bins.count / 2;
  const float lowest = static_cast<float>(-half), end = static_cast<float>(bins.count - half), factor = bins.factor;
  for (int64_t i = 0; i < n; i++) {
    const float place = x[i] * factor;
    const float above = place > lowest ? place : lowest;
    const float within = above < end ? above : end;
    const int32_t cut = static_cast<int32_t>(within);
    found[i] = half + cut - (static_cast<float>(cut) > within ? 1 : 0);
  }
}

template <void (*find)(const float*, int64_t, const HistogramBins&, int32_t*)>
void count_bins(const float* x, int64_t n, const HistogramBins& bins, uint32_t* tables, int64_t pitch) {
  int32_t found[kBlock];
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t size = n - first < kBlock ? n - first : kBlock;
    find(x + first, size, bins, found);
    int64_t i = 0;
    for (; i + kHistogramTables <= size; i += kHistogramTables) {
      for (int t = 0; t < kHistogramTables; t++) tables[t * pitch + found[i + t]]++;
    }
    for (; i < size; i++) tables[found[i]]++;
  }
}

constexpr HistogramKernels kKernels = {count_bins<find_between>, count_bins<find_dyadic>};

}  // namespace
}  // namespace qtool
