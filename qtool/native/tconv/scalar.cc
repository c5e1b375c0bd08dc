#include "tconv/body.h"

namespace qtool {

void tconv_scalar(const DepthwiseRun& run) { add_products(run); }

}  // namespace qtool
