#include "qrows/body.h"

namespace qtool {

const QrowsKernels qrows_avx2 = kKernels;

}  // namespace qtool
