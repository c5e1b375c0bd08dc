#include "sdwconv/sdwconv.h"

namespace qtool {
namespace {

void run(const SdwconvStrip& s) {
  for (int p = 0; p < s.pixels; ++p) {
    for (int64_t c = 0; c < s.channels; ++c) {
      float sum = 0;
      for (int64_t t = 0; t < s.taps; ++t) sum += s.input[t][p * s.step + c] * s.weight[t * s.width + c];
      float y = sum + s.bias[c];
      if (s.residual != nullptr) y += s.residual[p * s.channels + c];
      y = y < s.low ? s.low : y;  // these two let NaN pass
      s.out[p * s.channels + c] = y > s.high ? s.high : y;
    }
  }
}

}  // namespace

const SdwconvKernel sdwconv_scalar = {1, 1, run};

}  // namespace qtool
