#include <immintrin.h>

#include "ceilings/ceilings.h"
#include "core/avxvnni.h"

namespace qtool {
namespace {

int64_t int8(const uint8_t* x, int64_t, int64_t rounds) {
  const __m256i* v = reinterpret_cast<const __m256i*>(x);
  const __m256i a[2] = {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
  const __m256i b[2] = {_mm256_loadu_si256(v + 2), _mm256_loadu_si256(v + 3)};
  __m256i sums[12];
#pragma GCC unroll 12
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const auto add = [&](int count) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int i = 0; i < count; i++) add_products8(sums[i], a[i % 2], b[i % 2]);
  };
  // 12 sums: 5 cycles for each, two at a time. Two are a round; 1024 rounds are no multiple of six.
  int64_t round = 0;
  for (; round + 6 <= rounds; round += 6) add(12);
  for (; round < rounds; round++) add(2);
  alignas(32) int32_t lanes[8];
  int64_t total = 0;
#pragma GCC unroll 12
  for (const __m256i& sum : sums) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
    for (const int32_t lane : lanes) total += lane;
  }
  return total;
}

}  // namespace

const CeilingKernels ceilings_avxvnni = {int8, ceiling_float_avx2, ceiling_read_avx2};

}  // namespace qtool
