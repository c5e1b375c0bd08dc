#include "eltwise/body.h"

namespace qtool {

const EltwiseKernels eltwise_avx2 = kKernels;

}  // namespace qtool
