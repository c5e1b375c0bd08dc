// 64 elements at a time: bytes are widened by unpacking with zero, which packing undoes without a permutation.
#include <immintrin.h>

#include "qbinary/rows.h"

namespace qtool {
namespace {

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

INLINE void widen(__m512i bytes, __m512i (&words)[4]) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i low = _mm512_unpacklo_epi8(bytes, zero), high = _mm512_unpackhi_epi8(bytes, zero);
  words[0] = _mm512_unpacklo_epi16(low, zero);
  words[1] = _mm512_unpackhi_epi16(low, zero);
  words[2] = _mm512_unpacklo_epi16(high, zero);
  words[3] = _mm512_unpackhi_epi16(high, zero);
}

template <int KIND>
INLINE __m512 combine(__m512 a, __m512 b) {
  if (KIND == QT_ADD) return _mm512_add_ps(a, b);
  if (KIND == QT_SUB) return _mm512_sub_ps(a, b);
  if (KIND == QT_MUL) return _mm512_mul_ps(a, b);
  return _mm512_div_ps(a, b);
}

// scale * (q - zero) with one rounding for product and sum, as PyTorch's vector code has it.
INLINE __m512 dequantized(__m512i q, int32_t zero, float scale) {
  const float shift = -(scale * (float)zero);
  return _mm512_fmadd_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(q), _mm512_set1_ps(shift));
}

// All give rounded results without the zero point; packing clamps them where they FIT 32 bits.
template <int KIND, bool FITS>
struct FloatMath {
  INLINE __m512i run(const qt_binary_args& p, __m512i a, __m512i b) {
    const __m512 sum = combine<KIND>(dequantized(a, p.a_zero, p.a_scale), dequantized(b, p.b_zero, p.b_scale));
    const __m512 r = _mm512_mul_ps(sum, _mm512_set1_ps(p.inv_scale));
    if (FITS) return _mm512_cvtps_epi32(r);
    const __m512 low = _mm512_set1_ps((float)(p.out_min - p.out_zero));
    const __m512 high = _mm512_set1_ps((float)(p.out_max - p.out_zero));
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(r, low), high));  // in this order NaN gives low
  }
};

struct FixedMath {
  INLINE __m512i run(const qt_binary_args& p, __m512i a, __m512i b) {
    const __m512i mask = _mm512_set1_epi32((int32_t)((1u << p.shift) - 1));
    __m512i s = _mm512_add_epi32(_mm512_mullo_epi32(a, _mm512_set1_epi32(p.a_multiplier)),
                                 _mm512_mullo_epi32(b, _mm512_set1_epi32(p.b_multiplier)));
    s = _mm512_add_epi32(s, _mm512_set1_epi32(p.offset));
    const __m512i rest = _mm512_add_epi32(_mm512_and_si512(s, mask), _mm512_srai_epi32(s, 31));
    const __mmask16 up = _mm512_cmpgt_epi32_mask(rest, _mm512_srli_epi32(mask, 1));
    const __m512i shifted = _mm512_sra_epi32(s, _mm_cvtsi32_si128(p.shift));
    return _mm512_mask_sub_epi32(shifted, up, shifted, _mm512_set1_epi32(-1));
  }
};

template <class Math>
INLINE __m512i results(const qt_binary_args& p, __m512i a, __m512i b) {
  __m512i x[4], y[4];
  widen(a, x);
  widen(b, y);
  UNROLL for (int i = 0; i < 4; i++) x[i] = Math::run(p, x[i], y[i]);
  const __m512i zero = _mm512_set1_epi16((int16_t)p.out_zero);
  const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(x[0], x[1]), zero);
  const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(x[2], x[3]), zero);
  const __m512i q = _mm512_max_epu8(_mm512_packus_epi16(low, high), _mm512_set1_epi8((char)p.out_min));
  return _mm512_min_epu8(q, _mm512_set1_epi8((char)p.out_max));
}

template <class Math>
void run(const qt_binary_args& args, const QbinaryBlock& block) {
  const qt_binary_args p = args;  // a copy that no store can alias
  const __mmask64 all = ~(__mmask64)0, last = all >> (63 - (block.columns + 63) % 64);
  for (int64_t r = 0; r < block.rows; r++) {
    const uint8_t* a = block.a + r * block.a_pitch;
    const uint8_t* b = block.b + r * block.b_pitch;
    uint8_t* out = block.out + r * block.out_pitch;
    int64_t c = 0;
    for (; c + 64 <= block.columns; c += 64) {
      const __m512i q = results<Math>(p, _mm512_loadu_si512(a + c), _mm512_loadu_si512(b + c));
      _mm512_storeu_si512(out + c, q);
    }
    if (c == block.columns) continue;
    const __m512i x = _mm512_maskz_loadu_epi8(last, a + c), y = _mm512_maskz_loadu_epi8(last, b + c);
    _mm512_mask_storeu_epi8(out + c, last, results<Math>(p, x, y));
  }
}

template <int KIND>
void run_float(const qt_binary_args& args, const QbinaryBlock& block) {
  return qbinary_fits(args) ? run<FloatMath<KIND, true>>(args, block) : run<FloatMath<KIND, false>>(args, block);
}

}  // namespace

void qbinary_rows_avx512vnni(const qt_binary_args& args, const QbinaryBlock& block) {
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
