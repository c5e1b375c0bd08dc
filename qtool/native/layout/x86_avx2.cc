#include <immintrin.h>

#include "layout/transpose_avx2.h"

namespace qtool {
namespace {

struct Affine {
  __m256 inverse, zero, low, high;
};

// Eight values as int32. max_ps gives its second operand for NaN.
inline __m256i quantize8(const float* x, const Affine& a) {
  const __m256 value = _mm256_fmadd_ps(_mm256_loadu_ps(x), a.inverse, a.zero);
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, a.low), a.high));  // the limits are whole: order is free
}

void quantize(const float* x, uint8_t* q, int64_t count, const QuantizeScale& s) {
  const Affine a = {_mm256_set1_ps(s.inverse), _mm256_set1_ps(static_cast<float>(s.zero - s.shift)),
                    _mm256_set1_ps(static_cast<float>(-s.shift)), _mm256_set1_ps(static_cast<float>(255 - s.shift))};
  const __m256i shift = _mm256_set1_epi16(static_cast<int16_t>(s.shift));
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(s.flip));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the lanes of the two packs
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i lower = _mm256_packs_epi32(quantize8(x + i, a), quantize8(x + i + 8, a));
    const __m256i upper = _mm256_packs_epi32(quantize8(x + i + 16, a), quantize8(x + i + 24, a));
    const __m256i bytes = _mm256_packus_epi16(_mm256_add_epi16(lower, shift), _mm256_add_epi16(upper, shift));
    const __m256i ordered = _mm256_xor_si256(_mm256_permutevar8x32_epi32(bytes, order), flip);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), ordered);
  }
  for (; i < count; i++) {
    const __m128 value =
        _mm_fmadd_ss(_mm_load_ss(x + i), _mm256_castps256_ps128(a.inverse), _mm256_castps256_ps128(a.zero));
    const __m128 most = _mm_max_ss(value, _mm256_castps256_ps128(a.low));
    const int whole = _mm_cvtss_si32(_mm_min_ss(most, _mm256_castps256_ps128(a.high)));
    q[i] = static_cast<uint8_t>((whole + s.shift) ^ s.flip);
  }
}

void dequantize(const uint8_t* q, float* x, int64_t count, const QuantizeScale& s) {
  const __m256 scale = _mm256_set1_ps(s.scale);
  const __m256i zero = _mm256_set1_epi32(s.zero), flip = _mm256_set1_epi32(s.flip);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + i)));
    const __m256i centred = _mm256_sub_epi32(_mm256_xor_si256(wide, flip), zero);
    _mm256_storeu_ps(x + i, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(centred)));
  }
  for (; i < count; i++) x[i] = s.scale * static_cast<float>((q[i] ^ s.flip) - s.zero);
}

}  // namespace

const LayoutKernels layout_avx2 = {quantize, dequantize, transpose8_avx2, transpose32_avx2};

}  // namespace qtool
