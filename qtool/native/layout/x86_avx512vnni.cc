#include <immintrin.h>

#include "layout/transpose_avx2.h"

namespace qtool {
namespace {

void quantize(const float* x, uint8_t* q, int64_t count, const QuantizeScale& s) {
  const __m512 inverse = _mm512_set1_ps(s.inverse);
  const __m512 zero = _mm512_set1_ps(static_cast<float>(s.zero - s.shift));
  const __m512 low = _mm512_set1_ps(static_cast<float>(-s.shift));
  const __m512 high = _mm512_set1_ps(static_cast<float>(255 - s.shift));
  const __m512i shift = _mm512_set1_epi32(s.shift), flip = _mm512_set1_epi32(s.flip);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 valid = count - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - i)) - 1);
    const __m512 value = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(valid, x + i), inverse, zero);
    // max_ps gives its second operand for NaN; the limits are whole numbers, so rounding may come after them
    const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(value, low), high));
    _mm512_mask_cvtepi32_storeu_epi8(q + i, valid, _mm512_xor_si512(_mm512_add_epi32(whole, shift), flip));
  }
}

void dequantize(const uint8_t* q, float* x, int64_t count, const QuantizeScale& s) {
  const __m512 scale = _mm512_set1_ps(s.scale);
  const __m512i zero = _mm512_set1_epi32(s.zero), flip = _mm512_set1_epi32(s.flip);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 valid = count - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - i)) - 1);
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(valid, q + i));
    const __m512i centred = _mm512_sub_epi32(_mm512_xor_si512(wide, flip), zero);
    _mm512_mask_storeu_ps(x + i, valid, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(centred)));
  }
}

}  // namespace

const LayoutKernels layout_avx512vnni = {quantize, dequantize, transpose8_avx2, transpose32_avx2};

}  // namespace qtool
