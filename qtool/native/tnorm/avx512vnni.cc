#include "tnorm/body.h"

namespace qtool {

const TnormKernels tnorm_avx512vnni = kKernels;

}  // namespace qtool
