#include <immintrin.h>

#include "ceilings/ceilings.h"

namespace qtool {
namespace {

static inline __m256i load(const __m256i* v) { return _mm256_loadu_si256(v); }

static inline int64_t sum_of(__m256i v) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
  int64_t sum = 0;
  for (int i = 0; i < 8; i++) sum += lanes[i];
  return sum;
}

// The three instructions of a product without VNNI. `a` is opaque, or the product would be taken out of the loop.
#define DOT(sum, a, b)                                                                               \
  __asm__ volatile("" : "+x"(a));                                                                    \
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));

int64_t int8(const uint8_t* x, int64_t, int64_t rounds) {
  const __m256i* v = reinterpret_cast<const __m256i*>(x);
  __m256i a0 = load(v), a1 = load(v + 1);
  const __m256i b0 = load(v + 2), b1 = load(v + 3);
  __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t round = 0; round < rounds; round += 2) {
    DOT(s0, a0, b0) DOT(s1, a1, b1) DOT(s2, a0, b0) DOT(s3, a1, b1)
  }
  return sum_of(s0) + sum_of(s1) + sum_of(s2) + sum_of(s3);
}

}  // namespace

int64_t ceiling_float_avx2(const uint8_t* x, int64_t, int64_t rounds) {
  const float* f = reinterpret_cast<const float*>(x);
  const __m256 a0 = _mm256_loadu_ps(f), a1 = _mm256_loadu_ps(f + 8), b0 = _mm256_loadu_ps(f + 16), b1 = _mm256_loadu_ps(f + 24);
  __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  // Equal sums would be made one.
  __asm__("" : "+x"(s0), "+x"(s1), "+x"(s2), "+x"(s3), "+x"(s4), "+x"(s5), "+x"(s6), "+x"(s7));
  for (int64_t round = 0; round < rounds; round += 4) {  // 8 sums: 4 cycles for each, two at a time
    s0 = _mm256_fmadd_ps(a0, b0, s0), s1 = _mm256_fmadd_ps(a1, b1, s1);
    s2 = _mm256_fmadd_ps(a0, b0, s2), s3 = _mm256_fmadd_ps(a1, b1, s3);
    s4 = _mm256_fmadd_ps(a0, b0, s4), s5 = _mm256_fmadd_ps(a1, b1, s5);
    s6 = _mm256_fmadd_ps(a0, b0, s6), s7 = _mm256_fmadd_ps(a1, b1, s7);
  }
  const __m256 half = _mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3));
  const __m256 sums = _mm256_add_ps(half, _mm256_add_ps(_mm256_add_ps(s4, s5), _mm256_add_ps(s6, s7)));
  return sum_of(_mm256_cvtps_epi32(sums));
}

int64_t ceiling_read_avx2(const uint8_t* x, int64_t bytes, int64_t rounds) {
  __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t round = 0; round < rounds; round++) {
    const __m256i* v = reinterpret_cast<const __m256i*>(x);
    for (int64_t i = 0; i < bytes / 32; i += 8) {
      s0 = _mm256_add_epi32(s0, load(v + i)), s1 = _mm256_add_epi32(s1, load(v + i + 1));
      s2 = _mm256_add_epi32(s2, load(v + i + 2)), s3 = _mm256_add_epi32(s3, load(v + i + 3));
      s0 = _mm256_add_epi32(s0, load(v + i + 4)), s1 = _mm256_add_epi32(s1, load(v + i + 5));
      s2 = _mm256_add_epi32(s2, load(v + i + 6)), s3 = _mm256_add_epi32(s3, load(v + i + 7));
    }
    __asm__ volatile("" : "+r"(x) : : "memory");
  }
  return sum_of(s0) + sum_of(s1) + sum_of(s2) + sum_of(s3);
}

const CeilingKernels ceilings_avx2 = {int8, ceiling_float_avx2, ceiling_read_avx2};

}  // namespace qtool
