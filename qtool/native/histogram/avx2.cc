#include "histogram/body.h"

namespace qtool {

void histogram_avx2(const float* x, int64_t n, const HistogramBins& bins, uint32_t* tables, int64_t pitch) {
  count_bins(x, n, bins, tables, pitch);
}

}  // namespace qtool
