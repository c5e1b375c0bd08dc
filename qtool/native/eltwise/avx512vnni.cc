#include "eltwise/body.h"

namespace qtool {

const EltwiseKernels eltwise_avx512vnni = kKernels;

}  // namespace qtool
