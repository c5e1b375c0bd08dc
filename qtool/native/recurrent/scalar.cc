#include "recurrent/body.h"

namespace qtool {

const RecurrentKernels recurrent_scalar = kKernels;

}  // namespace qtool
