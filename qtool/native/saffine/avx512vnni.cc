#include <immintrin.h>

#include "saffine/saffine.h"

namespace qtool {

void saffine_avx512(const float* x, float* y, int64_t rows, int64_t channels, const float* scale, const float* shift) {
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; c += 16) {
      const __mmask16 lanes = channels - c >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (channels - c)) - 1);
      const __m512 product = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + c), _mm512_maskz_loadu_ps(lanes, scale + c));
      _mm512_mask_storeu_ps(y + c, lanes, _mm512_add_ps(product, _mm512_maskz_loadu_ps(lanes, shift + c)));
    }
  }
}

}  // namespace qtool
