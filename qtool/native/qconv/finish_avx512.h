// The way from sums to bytes of qconv.h in AVX-512, for the instruction set files that have it.
#pragma once

#include <immintrin.h>

#include "qconv/qconv.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace qtool {
namespace {

constexpr int kLanes = 16;

INLINE __mmask64 first_lanes(int count) { return ~(__mmask64)0 >> (64 - count); }  // 1..64

INLINE __m512 scaled(__m512i sum, __m512 bias, __m512 multiplier) {
  return _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(sum), bias), multiplier);
}

INLINE __m512 with_residual(const QconvFinish& f, __m512 r, const uint8_t* residual, __mmask64 lanes) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8((__mmask16)lanes, residual));
  const __m512 other = _mm512_sub_ps(_mm512_cvtepi32_ps(bytes), _mm512_set1_ps(f.res_zero));
  return _mm512_add_ps(r, _mm512_mul_ps(other, _mm512_set1_ps(f.res_multiplier)));
}

// What is too low for an int32 becomes the lowest one, and packing clamps that as it should. What is too high would
// become the lowest one, too.
INLINE __m512i to_integers(const QconvFinish& f, __m512 r) {
  if (!f.fits) r = _mm512_min_ps(r, _mm512_set1_ps(f.high));
  return _mm512_cvtps_epi32(r);
}

// 64 results in four vectors to bytes in the same order.
INLINE __m512i packed(const QconvFinish& f, const __m512i (&q)[4]) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i left = _mm512_packs_epi32(q[0], q[1]), right = _mm512_packs_epi32(q[2], q[3]);
  if (f.out_zero != 0) {
    left = _mm512_adds_epi16(left, _mm512_set1_epi16((int16_t)f.out_zero));
    right = _mm512_adds_epi16(right, _mm512_set1_epi16((int16_t)f.out_zero));
  }
  __m512i bytes = _mm512_packus_epi16(left, right);
  if (f.out_min != 0) bytes = _mm512_max_epu8(bytes, _mm512_set1_epi8((char)f.out_min));
  if (f.out_max != 255) bytes = _mm512_min_epu8(bytes, _mm512_set1_epi8((char)f.out_max));
  return _mm512_permutexvar_epi32(order, bytes);
}

// The chosen columns of row `row` of rows of V * 16 columns in `bytes`.
template <int V>
INLINE void store_bytes(uint8_t* out, __m512i bytes, int row, __mmask64 lanes) {
  if (V > 2) {
    _mm512_mask_storeu_epi8(out, lanes, bytes);
  } else if (V == 2) {
    const __m256i part = row == 0 ? _mm512_castsi512_si256(bytes) : _mm512_extracti64x4_epi64(bytes, 1);
    _mm256_mask_storeu_epi8(out, (__mmask32)lanes, part);
  } else {
    const __m128i part = row == 0   ? _mm512_castsi512_si128(bytes)
                         : row == 1 ? _mm512_extracti32x4_epi32(bytes, 1)
                         : row == 2 ? _mm512_extracti32x4_epi32(bytes, 2)
                                    : _mm512_extracti32x4_epi32(bytes, 3);
    _mm_mask_storeu_epi8(out, (__mmask16)lanes, part);
  }
}

// 16 results of one row; `residual` is its first byte or NULL.
INLINE __m512i rounded(const QconvJob& job, __m512i sum, int vector, const uint8_t* residual) {
  const QconvFinish& f = *job.finish;
  const int column = vector * kLanes;
  __m512 r = scaled(sum, _mm512_load_ps(job.bias + column), _mm512_load_ps(job.multiplier + column));
  if (residual != NULL) r = with_residual(f, r, residual + column, first_lanes(job.columns) >> column);
  return to_integers(f, r);
}

// As many rows at a time as fill 64 bytes.
template <int R, int V, bool RESIDUAL>
INLINE void finish(const QconvJob& job, const QconvTile& tile, const __m512i (&sum)[R][V]) {
  constexpr int kTogether = V > 2 ? 1 : 4 / V;
  UNROLL for (int r = 0; r < R; r += kTogether) {
    __m512i q[4];
    UNROLL for (int i = 0; i < 4; i++) {
      const int row = V > 2 ? r : r + i / V, v = V > 2 ? i : i % V;
      const bool used = row < R && v < V;
      const uint8_t* residual = RESIDUAL && used ? job.residual + tile.outputs[row] : NULL;
      q[i] = used ? rounded(job, sum[used ? row : 0][used ? v : 0], v, residual) : _mm512_setzero_si512();
    }
    const __m512i bytes = packed(*job.finish, q);
    UNROLL for (int i = 0; i < kTogether; i++) {
      if (r + i < R) store_bytes<V>(job.out + tile.outputs[r + i], bytes, i, first_lanes(job.columns));
    }
  }
}

template <int R, int V>
INLINE void finish_tile(const QconvJob& job, const QconvTile& tile, const __m512i (&sum)[R][V]) {
  if (job.residual != NULL) {
    finish<R, V, true>(job, tile, sum);
  } else {
    finish<R, V, false>(job, tile, sum);
  }
}

}  // namespace
}  // namespace qtool
