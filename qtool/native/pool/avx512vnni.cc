#include "pool/body.h"

namespace qtool {

const PoolKernels pool_avx512vnni = kKernels;

}  // namespace qtool
