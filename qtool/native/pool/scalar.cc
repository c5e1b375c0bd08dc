#include "pool/body.h"

namespace qtool {

const PoolKernels pool_scalar = kKernels;

}  // namespace qtool
