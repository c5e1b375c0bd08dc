// What comes before and after the product in AVX2, for the instruction set files that have it.
#pragma once

#include <immintrin.h>

#include "qlinear_dynamic/qlinear_dynamic.h"

#define UNROLL _Pragma("GCC unroll 8")

namespace qtool {
namespace {

constexpr int kLanes = 8;

// All ones in the first `count` lanes.
static inline __m256i first_lanes(int64_t count) {
  const int lanes = count < kLanes ? (int)count : kLanes;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

void min_max(const float* x, int64_t count, float range[2]) {
  __m256 low[4], high[4];
  UNROLL for (int v = 0; v < 4; ++v) {
    low[v] = _mm256_set1_ps(range[0]);
    high[v] = _mm256_set1_ps(range[1]);
  }
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    UNROLL for (int v = 0; v < 4; ++v) {
      const __m256 a = _mm256_loadu_ps(x + i + v * kLanes);
      low[v] = _mm256_min_ps(a, low[v]);  // in this order NaN does not count
      high[v] = _mm256_max_ps(a, high[v]);
    }
  }
  for (; i < count; i += kLanes) {
    const __m256i lanes = first_lanes(count - i);
    const __m256 a = _mm256_blendv_ps(low[0], _mm256_maskload_ps(x + i, lanes), _mm256_castsi256_ps(lanes));
    low[0] = _mm256_min_ps(a, low[0]);
    high[0] = _mm256_max_ps(a, high[0]);
  }
  alignas(32) float ends[2][kLanes];
  _mm256_store_ps(ends[0], _mm256_min_ps(_mm256_min_ps(low[0], low[1]), _mm256_min_ps(low[2], low[3])));
  _mm256_store_ps(ends[1], _mm256_max_ps(_mm256_max_ps(high[0], high[1]), _mm256_max_ps(high[2], high[3])));
  for (int lane = 0; lane < kLanes; ++lane) {
    if (ends[0][lane] < range[0]) range[0] = ends[0][lane];
    if (ends[1][lane] > range[1]) range[1] = ends[1][lane];
  }
}

// q of 8 numbers at a time, in 16 bits or in bytes.
template <bool kBytes>
void quantize(const float* x, int64_t count, float inverse_scale, int32_t zero, void* q) {
  const __m256 inverse = _mm256_set1_ps(inverse_scale), zeros = _mm256_set1_ps((float)zero);
  const __m256 low = _mm256_setzero_ps(), high = _mm256_set1_ps(255);
  for (int64_t i = 0; i < count; i += kLanes) {
    const bool whole = i + kLanes <= count;
    const __m256 a = whole ? _mm256_loadu_ps(x + i) : _mm256_maskload_ps(x + i, first_lanes(count - i));
    const __m256 y = _mm256_min_ps(_mm256_max_ps(_mm256_fmadd_ps(a, inverse, zeros), low), high);  // so NaN gives 0
    const __m256i rounded = _mm256_cvtps_epi32(y);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    if (kBytes) {
      _mm_storel_epi64((__m128i*)((uint8_t*)q + i), _mm_packus_epi16(words, words));
    } else {
      _mm_storeu_si128((__m128i*)((uint16_t*)q + i), words);
    }
  }
}

template <int R, int V>
static inline __attribute__((always_inline)) void finish(const QlinearDynamicTile& tile, const __m256i (&sum)[R][V]) {
  const __m256 low = _mm256_set1_ps(tile.low), high = _mm256_set1_ps(tile.high);
  UNROLL for (int v = 0; v < V; ++v) {
    const int left = tile.columns - v * kLanes;
    const __m256i lanes = first_lanes(left);
    const __m256 scale = _mm256_load_ps(tile.scale + v * kLanes), bias = _mm256_load_ps(tile.bias + v * kLanes);
    const __m256i sums = _mm256_load_si256((const __m256i*)(tile.sums + v * kLanes));
    UNROLL for (int r = 0; r < R; ++r) {
      const __m256i zero = _mm256_mullo_epi32(_mm256_set1_epi32(tile.x_zero[r]), sums);
      const __m256 acc = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[r][v], zero));
      const __m256 multiplier = _mm256_mul_ps(_mm256_set1_ps(tile.x_scale[r]), scale);
      __m256 y = tile.fused ? _mm256_fmadd_ps(acc, multiplier, bias) : _mm256_add_ps(_mm256_mul_ps(acc, multiplier), bias);
      y = _mm256_min_ps(high, _mm256_max_ps(low, y));  // in this order NaN passes
      float* out = tile.out + r * tile.pitch + v * kLanes;
      if (left >= kLanes) {  // masked stores are slow on AMD
        _mm256_storeu_ps(out, y);
      } else {
        _mm256_maskstore_ps(out, lanes, y);
      }
    }
  }
}

}  // namespace
}  // namespace qtool
