// 32 elements at a time, or 16: bytes are widened by unpacking with zero, which packing undoes without a permutation.
#include <immintrin.h>
#include <string.h>

#include "qbinary/rows.h"

namespace qtool {
namespace {

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

INLINE void widen(__m256i bytes, __m256i (&words)[4]) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low = _mm256_unpacklo_epi8(bytes, zero), high = _mm256_unpackhi_epi8(bytes, zero);
  words[0] = _mm256_unpacklo_epi16(low, zero);
  words[1] = _mm256_unpackhi_epi16(low, zero);
  words[2] = _mm256_unpacklo_epi16(high, zero);
  words[3] = _mm256_unpackhi_epi16(high, zero);
}

template <int KIND>
INLINE __m256 combine(__m256 a, __m256 b) {
  if (KIND == QT_ADD) return _mm256_add_ps(a, b);
  if (KIND == QT_SUB) return _mm256_sub_ps(a, b);
  if (KIND == QT_MUL) return _mm256_mul_ps(a, b);
  return _mm256_div_ps(a, b);
}

// scale * (q - zero) with one rounding for product and sum, as PyTorch's vector code has it.
INLINE __m256 dequantized(__m256i q, int32_t zero, float scale) {
  const float shift = -(scale * (float)zero);
  return _mm256_fmadd_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(q), _mm256_set1_ps(shift));
}

// All give rounded results without the zero point; packing clamps them where they FIT 32 bits.
template <int KIND, bool FITS>
struct FloatMath {
  INLINE __m256i run(const qt_binary_args& p, __m256i a, __m256i b) {
    const __m256 sum = combine<KIND>(dequantized(a, p.a_zero, p.a_scale), dequantized(b, p.b_zero, p.b_scale));
    const __m256 r = _mm256_mul_ps(sum, _mm256_set1_ps(p.inv_scale));
    if (FITS) return _mm256_cvtps_epi32(r);
    const __m256 low = _mm256_set1_ps((float)(p.out_min - p.out_zero));
    const __m256 high = _mm256_set1_ps((float)(p.out_max - p.out_zero));
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(r, low), high));  // in this order NaN gives low
  }
};

struct FixedMath {
  INLINE __m256i run(const qt_binary_args& p, __m256i a, __m256i b) {
    const __m256i mask = _mm256_set1_epi32((int32_t)((1u << p.shift) - 1));
    __m256i s = _mm256_add_epi32(_mm256_mullo_epi32(a, _mm256_set1_epi32(p.a_multiplier)),
                                 _mm256_mullo_epi32(b, _mm256_set1_epi32(p.b_multiplier)));
    s = _mm256_add_epi32(s, _mm256_set1_epi32(p.offset));
    const __m256i rest = _mm256_add_epi32(_mm256_and_si256(s, mask), _mm256_srai_epi32(s, 31));
    const __m256i up = _mm256_cmpgt_epi32(rest, _mm256_srli_epi32(mask, 1));  // -1 where true
    return _mm256_sub_epi32(_mm256_sra_epi32(s, _mm_cvtsi32_si128(p.shift)), up);
  }
};

template <class Math>
INLINE __m256i results(const qt_binary_args& p, __m256i a, __m256i b) {
  __m256i x[4], y[4];
  widen(a, x);
  widen(b, y);
  UNROLL for (int i = 0; i < 4; i++) x[i] = Math::run(p, x[i], y[i]);
  const __m256i zero = _mm256_set1_epi16((int16_t)p.out_zero);
  const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(x[0], x[1]), zero);
  const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(x[2], x[3]), zero);
  const __m256i q = _mm256_max_epu8(_mm256_packus_epi16(low, high), _mm256_set1_epi8((char)p.out_min));
  return _mm256_min_epu8(q, _mm256_set1_epi8((char)p.out_max));
}

INLINE __m256i load_32(const uint8_t* bytes) { return _mm256_loadu_si256((const __m256i*)bytes); }
INLINE __m256i load_16(const uint8_t* bytes) { return _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)bytes)); }

template <class Math>
INLINE void store_32(const qt_binary_args& p, const uint8_t* a, const uint8_t* b, uint8_t* out) {
  _mm256_storeu_si256((__m256i*)out, results<Math>(p, load_32(a), load_32(b)));
}

template <class Math>
INLINE void store_16(const qt_binary_args& p, const uint8_t* a, const uint8_t* b, uint8_t* out) {
  _mm_storeu_si128((__m128i*)out, _mm256_castsi256_si128(results<Math>(p, load_16(a), load_16(b))));
}

template <class Math>
void run(const qt_binary_args& args, const QbinaryBlock& block) {
  const qt_binary_args p = args;  // a copy that no store can alias
  for (int64_t r = 0; r < block.rows; r++) {
    const uint8_t* a = block.a + r * block.a_pitch;
    const uint8_t* b = block.b + r * block.b_pitch;
    uint8_t* out = block.out + r * block.out_pitch;
    int64_t c = 0;
    for (; c + 32 <= block.columns; c += 32) store_32<Math>(p, a + c, b + c, out + c);
    if (c + 16 <= block.columns) {  // all of a row, where a convolution's panel of 16 channels comes before
      store_16<Math>(p, a + c, b + c, out + c);
      c += 16;
    }
    if (c == block.columns) continue;
    const size_t rest = (size_t)(block.columns - c);
    uint8_t tail[2][16] = {};
    memcpy(tail[0], a + c, rest);
    memcpy(tail[1], b + c, rest);
    store_16<Math>(p, tail[0], tail[1], tail[0]);
    memcpy(out + c, tail[0], rest);
  }
}

template <int KIND>
void run_float(const qt_binary_args& args, const QbinaryBlock& block) {
  return qbinary_fits(args) ? run<FloatMath<KIND, true>>(args, block) : run<FloatMath<KIND, false>>(args, block);
}

}  // namespace

void qbinary_rows_avx2(const qt_binary_args& args, const QbinaryBlock& block) {
  const QbinaryBlock joined = qbinary_joined(block);
  if (args.fixed_point != 0) return run<FixedMath>(args, joined);
  switch (args.kind) {
    case QT_ADD: return run_float<QT_ADD>(args, joined);
    case QT_SUB: return run_float<QT_SUB>(args, joined);
    case QT_MUL: return run_float<QT_MUL>(args, joined);
    default: return run_float<QT_DIV>(args, joined);
  }
}

}  // namespace qtool
