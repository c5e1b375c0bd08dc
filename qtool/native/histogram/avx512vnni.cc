#include "histogram/body.h"

namespace qtool {

const HistogramKernels histogram_avx512vnni = kKernels;

}  // namespace qtool
