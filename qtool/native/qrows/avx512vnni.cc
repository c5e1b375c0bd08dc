#include "qrows/body.h"

namespace qtool {

const QrowsKernels qrows_avx512vnni = kKernels;

}  // namespace qtool
