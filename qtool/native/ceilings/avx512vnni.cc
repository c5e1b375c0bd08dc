#include <immintrin.h>

#include "ceilings/ceilings.h"

namespace qtool {
namespace {

// Assembly, because GCC 12 moves the sums about when they come from the intrinsic.
#define DOT(sum) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));

int64_t int8(const uint8_t* x, int64_t, int64_t rounds) {
  const __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(x + 64);
  __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  __m512i s8 = s0, s9 = s0, s10 = s0, s11 = s0, s12 = s0, s13 = s0, s14 = s0, s15 = s0;
  for (int64_t round = 0; round < rounds; round += 16) {  // 16 sums: 5 cycles for each, two at a time
    DOT(s0) DOT(s1) DOT(s2) DOT(s3) DOT(s4) DOT(s5) DOT(s6) DOT(s7)
    DOT(s8) DOT(s9) DOT(s10) DOT(s11) DOT(s12) DOT(s13) DOT(s14) DOT(s15)
  }
  const __m512i sums[16] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15};
  int64_t total = 0;
  for (int i = 0; i < 16; i++) total += _mm512_reduce_add_epi32(sums[i]);
  return total;
}

}  // namespace

int64_t ceiling_float_avx512(const uint8_t* x, int64_t, int64_t rounds) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 64);
  __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  // Equal sums would be made one.
  __asm__("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7));
  for (int64_t round = 0; round < rounds; round += 8) {  // 8 sums: 4 cycles for each, two at a time
    s0 = _mm512_fmadd_ps(a, b, s0), s1 = _mm512_fmadd_ps(a, b, s1);
    s2 = _mm512_fmadd_ps(a, b, s2), s3 = _mm512_fmadd_ps(a, b, s3);
    s4 = _mm512_fmadd_ps(a, b, s4), s5 = _mm512_fmadd_ps(a, b, s5);
    s6 = _mm512_fmadd_ps(a, b, s6), s7 = _mm512_fmadd_ps(a, b, s7);
  }
  const __m512 half = _mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3));
  const __m512 sums = _mm512_add_ps(half, _mm512_add_ps(_mm512_add_ps(s4, s5), _mm512_add_ps(s6, s7)));
  return static_cast<int64_t>(_mm512_reduce_add_ps(sums));
}

int64_t ceiling_read_avx512(const uint8_t* x, int64_t bytes, int64_t rounds) {
  __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t round = 0; round < rounds; round++) {
    for (int64_t i = 0; i < bytes; i += 512) {
      const uint8_t* v = x + i;
      s0 = _mm512_add_epi32(s0, _mm512_loadu_si512(v)), s1 = _mm512_add_epi32(s1, _mm512_loadu_si512(v + 64));
      s2 = _mm512_add_epi32(s2, _mm512_loadu_si512(v + 128)), s3 = _mm512_add_epi32(s3, _mm512_loadu_si512(v + 192));
      s0 = _mm512_add_epi32(s0, _mm512_loadu_si512(v + 256)), s1 = _mm512_add_epi32(s1, _mm512_loadu_si512(v + 320));
      s2 = _mm512_add_epi32(s2, _mm512_loadu_si512(v + 384)), s3 = _mm512_add_epi32(s3, _mm512_loadu_si512(v + 448));
    }
    __asm__ volatile("" : "+r"(x) : : "memory");
  }
  int64_t total = _mm512_reduce_add_epi32(s0);
  total += _mm512_reduce_add_epi32(s1);
  total += _mm512_reduce_add_epi32(s2);
  return total + _mm512_reduce_add_epi32(s3);
}

const CeilingKernels ceilings_avx512vnni = {int8, ceiling_float_avx512, ceiling_read_avx512};

}  // namespace qtool
