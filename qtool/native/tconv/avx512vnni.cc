#include "tconv/body.h"

namespace qtool {

void tconv_avx512vnni(const DepthwiseRun& run) { add_products(run); }

}  // namespace qtool
