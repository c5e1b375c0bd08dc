#include "teltwise/body.h"

namespace qtool {

const TeltwiseKernels teltwise_scalar = kKernels;

}  // namespace qtool
