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

INLINE __m256 scaled(__m256i sum, const float* bias, const float* multiplier) {
  return _mm256_mul_ps(_mm256_add_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(bias)), _mm256_load_ps(multiplier));
}

// `q` holds the residual's bytes as 32-bit numbers.
INLINE __m256 with_residual(const QconvFinish& f, __m256 r, __m256i q) {
  const __m256 other = _mm256_sub_ps(_mm256_cvtepi32_ps(q), _mm256_set1_ps(f.res_zero));
  return _mm256_add_ps(r, _mm256_mul_ps(other, _mm256_set1_ps(f.res_multiplier)));
}

// What leaves the range of a byte is clamped where it is packed, unless it leaves that of an int32, too.
INLINE __m256i to_integers(const QconvFinish& f, bool fits, __m256 r) {
  if (!fits) r = _mm256_min_ps(_mm256_max_ps(r, _mm256_set1_ps(f.low)), _mm256_set1_ps(f.high));
  return _mm256_cvtps_epi32(r);
}

// 32 results of 16 bits to bytes, packed lane by lane.
INLINE __m256i to_bytes(const QconvFinish& f, __m256i first, __m256i second) {
  const __m256i zero = _mm256_set1_epi16((int16_t)f.out_zero);
  __m256i bytes = _mm256_packus_epi16(_mm256_adds_epi16(first, zero), _mm256_adds_epi16(second, zero));
  bytes = _mm256_max_epu8(bytes, _mm256_set1_epi8((char)f.out_min));
  return _mm256_min_epu8(bytes, _mm256_set1_epi8((char)f.out_max));
}

// How the sums of a tile end: `kPlain` where all columns are written, all results fit and nothing is added.
enum Finish { kPlain, kUsual, kResidual };

// The V * 8 columns of one row.
template <int V, Finish HOW>
INLINE void round_row(const QconvJob& job, const QconvTile& tile, int r, const __m256i (&sum)[V], __m256i (&q)[V]) {
  uint8_t bytes[2 * kLanes];
  const uint8_t* residual = NULL;
  if (HOW == kResidual) {
    residual = job.residual + tile.outputs[r];
    if (job.columns < V * kLanes) residual = (const uint8_t*)memcpy(bytes, residual, (size_t)job.columns);
  }
  UNROLL for (int v = 0; v < V; v++) {
    const int column = v * kLanes;
    __m256 result = scaled(sum[v], job.bias + column, job.multiplier + column);
    if (HOW == kResidual) {
      const __m128i other = _mm_loadl_epi64((const __m128i*)(residual + column));
      result = with_residual(*job.finish, result, _mm256_cvtepu8_epi32(other));
    }
    q[v] = to_integers(*job.finish, HOW == kPlain || job.finish->fits, result);
  }
}

// 32 results in four vectors to bytes in the same order.
INLINE __m256i packed(const QconvFinish& f, const __m256i (&q)[4]) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = to_bytes(f, _mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  return _mm256_permutevar8x32_epi32(bytes, order);
}

// Row `row` of rows of V * 8 bytes, in the low ones.
template <int V>
INLINE __m128i row_of(__m256i bytes, int row) {
  const bool above = row * V >= 2;
  const __m128i half = above ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
  return row * V % 2 == 1 ? _mm_unpackhi_epi64(half, half) : half;
}

INLINE void store_row(const QconvJob& job, uint8_t* out, __m128i bytes, int columns) {
  if (columns == 2 * kLanes) {
    _mm_storeu_si128((__m128i*)out, bytes);
  } else if (columns == kLanes) {
    _mm_storel_epi64((__m128i*)out, bytes);
  } else {
    store_part(out, bytes, job.columns);
  }
}

// As many rows at a time as fill 32 bytes.
template <int R, int V, Finish HOW>
INLINE void finish(const QconvJob& job, const QconvTile& tile, const __m256i (&sum)[R][V]) {
  constexpr int kTogether = 4 / V;
  const int columns = HOW == kPlain ? V * kLanes : job.columns;
  UNROLL for (int r = 0; r < R; r += kTogether) {
    __m256i q[kTogether][V], all[4];
    UNROLL for (int i = 0; i < kTogether; i++) {
      if (r + i < R) {
        round_row<V, HOW>(job, tile, r + i, sum[r + i < R ? r + i : 0], q[i]);
      } else {
        UNROLL for (int v = 0; v < V; v++) q[i][v] = _mm256_setzero_si256();
      }
    }
    UNROLL for (int i = 0; i < 4; i++) all[i] = q[i / V][i % V];
    const __m256i bytes = packed(*job.finish, all);
    UNROLL for (int i = 0; i < kTogether; i++) {
      if (r + i < R) store_row(job, job.out + tile.outputs[r + i], row_of<V>(bytes, i), columns);
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
    finish<R, V, kResidual>(job, tile, sum);
  } else if (job.finish->fits && job.columns == V * kLanes) {
    finish<R, V, kPlain>(job, tile, sum);
  } else {
    finish<R, V, kUsual>(job, tile, sum);
  }
}

}  // namespace
}  // namespace qtool
