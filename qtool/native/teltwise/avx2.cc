#include "teltwise/body.h"

namespace qtool {

const TeltwiseKernels teltwise_avx2 = kKernels;

}  // namespace qtool
