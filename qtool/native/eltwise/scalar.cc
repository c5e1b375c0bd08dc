#include "eltwise/body.h"

namespace qtool {

const EltwiseKernels eltwise_scalar = kKernels;

}  // namespace qtool
