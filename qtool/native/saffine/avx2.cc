#include <immintrin.h>

#include "saffine/saffine.h"

namespace qtool {

void saffine_avx2(const float* x, float* y, int64_t rows, int64_t channels, const float* scale, const float* shift) {
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    int64_t c = 0;
    for (; c + 8 <= channels; c += 8) {
      const __m256 product = _mm256_mul_ps(_mm256_loadu_ps(x + c), _mm256_loadu_ps(scale + c));
      _mm256_storeu_ps(y + c, _mm256_add_ps(product, _mm256_loadu_ps(shift + c)));
    }
    for (; c < channels; ++c) y[c] = x[c] * scale[c] + shift[c];
  }
}

}  // namespace qtool
