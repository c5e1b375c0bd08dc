#include "histogram/body.h"

namespace qtool {

const HistogramKernels histogram_avx2 = kKernels;

}  // namespace qtool
