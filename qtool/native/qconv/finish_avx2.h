// The way from sums to bytes of qconv.h in AVX2, for the kernels of tiles of 8 or 16 columns.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "qconv/qconv.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

namespace qtool {
namespace {

constexpr int kLanes = 8;

// The first 1..15 bytes.
INLINE void store_part(uint8_t* out, __m128i bytes, int count) {
  if (count & 8) {
    _mm_storel_epi64((__m128i*)out, bytes);
    bytes = _mm_srli_si128(bytes, 8);
    out += 8;
  }
  if (count & 4) {
    const int32_t four = _mm_cvtsi128_si32(bytes);
    memcpy(out, &four, 4);
    bytes = _mm_srli_si128(bytes, 4);
    out += 4;
  }
  const int32_t rest = _mm_cvtsi128_si32(bytes);
  if (count & 2) memcpy(out, &rest, 2);
  if (count & 1) out[count & 2] = (uint8_t)(rest >> (count & 2) * 8);
}

// What is out of the range of a byte is clamped where it is packed; see `fits`.
INLINE __m256i rounded(const QconvJob& job, __m256i sum, int column, const uint8_t* residual) {
  const QconvFinish& f = *job.finish;
  __m256 r = _mm256_add_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(job.bias + column));
  r = _mm256_mul_ps(r, _mm256_load_ps(job.multiplier + column));
  if (residual != NULL) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)(residual + column));
    const __m256 other = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(f.res_zero));
    r = _mm256_add_ps(r, _mm256_mul_ps(other, _mm256_set1_ps(f.res_multiplier)));
  }
  if (!f.fits) r = _mm256_min_ps(_mm256_max_ps(r, _mm256_set1_ps(f.low)), _mm256_set1_ps(f.high));
  return _mm256_cvtps_epi32(r);
}

// Of one row: V * 8 columns as 16-bit numbers, the lower 4 of each vector in the lower half; V of 1 leaves half unused.
template <int V, bool RESIDUAL>
INLINE void round_row(const QconvJob& job, const QconvTile& tile, int r, const __m256i (&sum)[V], __m256i (&q)[V]) {
  uint8_t bytes[2 * kLanes];
  const uint8_t* residual = NULL;
  if (RESIDUAL) {
    residual = job.residual + tile.outputs[r];
    if (job.columns < V * kLanes) residual = (const uint8_t*)memcpy(bytes, residual, (size_t)job.columns);
  }
  UNROLL for (int v = 0; v < V; v++) q[v] = rounded(job, sum[v], v * kLanes, residual);
}

// 32 results of 16 bits, packed lane by lane, to bytes.
INLINE __m256i to_bytes(const QconvFinish& f, __m256i first, __m256i second) {
  const __m256i zero = _mm256_set1_epi16((int16_t)f.out_zero);
  __m256i bytes = _mm256_packus_epi16(_mm256_adds_epi16(first, zero), _mm256_adds_epi16(second, zero));
  bytes = _mm256_max_epu8(bytes, _mm256_set1_epi8((char)f.out_min));
  bytes = _mm256_min_epu8(bytes, _mm256_set1_epi8((char)f.out_max));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Two rows at a time.
template <int R, int V, bool RESIDUAL>
INLINE void finish(const QconvJob& job, const QconvTile& tile, const __m256i (&sum)[R][V]) {
  UNROLL for (int r = 0; r < R; r += 2) {
    const int other = r + 1 < R ? r + 1 : r;
    __m256i q[V], p[V];
    round_row<V, RESIDUAL>(job, tile, r, sum[r], q);
    round_row<V, RESIDUAL>(job, tile, other, sum[other], p);
    __m128i first, second;
    if (V == 2) {
      const __m256i bytes =
          to_bytes(*job.finish, _mm256_packs_epi32(q[0], q[V - 1]), _mm256_packs_epi32(p[0], p[V - 1]));
      first = _mm256_castsi256_si128(bytes);
      second = _mm256_extracti128_si256(bytes, 1);
    } else {
      const __m256i words = _mm256_packs_epi32(q[0], p[0]);
      first = _mm256_castsi256_si128(to_bytes(*job.finish, words, words));
      second = _mm_unpackhi_epi64(first, first);
    }
    if (job.columns == 2 * kLanes) {
      _mm_storeu_si128((__m128i*)(job.out + tile.outputs[r]), first);
      if (r + 1 < R) _mm_storeu_si128((__m128i*)(job.out + tile.outputs[other]), second);
    } else {
      store_part(job.out + tile.outputs[r], first, job.columns);
      if (r + 1 < R) store_part(job.out + tile.outputs[other], second, job.columns);
    }
  }
}

template <int R, int V>
INLINE void start_sums(const QconvJob& job, __m256i (&sum)[R][V]) {
  UNROLL for (int v = 0; v < V; v++) {
    const __m256i start = _mm256_load_si256((const __m256i*)(job.start + v * kLanes));
    UNROLL for (int r = 0; r < R; r++) sum[r][v] = start;
  }
}

template <int R, int V>
INLINE void finish_tile(const QconvJob& job, const QconvTile& tile, const __m256i (&sum)[R][V]) {
  if (job.residual != NULL) {
    finish<R, V, true>(job, tile, sum);
  } else {
    finish<R, V, false>(job, tile, sum);
  }
}

}  // namespace
}  // namespace qtool
