#include "recurrent/body.h"

namespace qtool {

const RecurrentKernels recurrent_avx512 = kKernels;

}  // namespace qtool
