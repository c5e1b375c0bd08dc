#include "pool/body.h"

namespace qtool {

const PoolKernels pool_avx2 = kKernels;

}  // namespace qtool
