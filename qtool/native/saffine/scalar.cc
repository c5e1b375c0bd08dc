#include "saffine/saffine.h"

namespace qtool {

void saffine_scalar(const float* x, float* y, int64_t rows, int64_t channels, const float* scale, const float* shift) {
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c) y[c] = x[c] * scale[c] + shift[c];
  }
}

}  // namespace qtool
