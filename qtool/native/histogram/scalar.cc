#include "histogram/body.h"

namespace qtool {

const HistogramKernels histogram_scalar = kKernels;

}  // namespace qtool
