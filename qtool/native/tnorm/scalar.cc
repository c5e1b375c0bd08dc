#include "tnorm/body.h"

namespace qtool {

const TnormKernels tnorm_scalar = kKernels;

}  // namespace qtool
