#include "recurrent/body.h"

namespace qtool {

const RecurrentKernels recurrent_avx2 = kKernels;

}  // namespace qtool
