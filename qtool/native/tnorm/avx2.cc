#include "tnorm/body.h"

namespace qtool {

const TnormKernels tnorm_avx2 = kKernels;

}  // namespace qtool
