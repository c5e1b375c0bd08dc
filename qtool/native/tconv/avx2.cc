#include "tconv/body.h"

namespace qtool {

void tconv_avx2(const DepthwiseRun& run) { add_products(run); }

}  // namespace qtool
