#include "qrows/body.h"

namespace qtool {

const QrowsKernels qrows_scalar = kKernels;

}  // namespace qtool
