#include "teltwise/body.h"

namespace qtool {

const TeltwiseKernels teltwise_avx512vnni = kKernels;

}  // namespace qtool
