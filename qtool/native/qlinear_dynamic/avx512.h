// What lies around the product, in AVX-512: for the instruction set files that have it.
#pragma once

#include <immintrin.h>

#include "qlinear_dynamic/qlinear_dynamic.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // both: gcc 12 finds it in its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define UNROLL _Pragma("GCC unroll 8")

namespace qtool {
namespace {

constexpr int kLanes = 16;

static inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? (__mmask16)0xffff : count <= 0 ? (__mmask16)0 : (__mmask16)((1u << count) - 1);
}

static void min_max(const float* x, int64_t count, float range[2]) {
  __m512 low[4], high[4];
  UNROLL for (int v = 0; v < 4; ++v) {
    low[v] = _mm512_set1_ps(range[0]);
    high[v] = _mm512_set1_ps(range[1]);
  }
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    UNROLL for (int v = 0; v < 4; ++v) {
      const __m512 a = _mm512_loadu_ps(x + i + v * kLanes);
      low[v] = _mm512_min_ps(a, low[v]);  // in this order NaN does not count
      high[v] = _mm512_max_ps(a, high[v]);
    }
  }
  for (; i < count; i += kLanes) {
    const __m512 a = _mm512_mask_loadu_ps(low[0], first_lanes(count - i), x + i);
    low[0] = _mm512_min_ps(a, low[0]);
    high[0] = _mm512_max_ps(a, high[0]);
  }
  range[0] = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(low[0], low[1]), _mm512_min_ps(low[2], low[3])));
  range[1] = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(high[0], high[1]), _mm512_max_ps(high[2], high[3])));
}

static void quantize(const float* x, int64_t count, float inverse_scale, int32_t zero, void* q) {
  const __m512 inverse = _mm512_set1_ps(inverse_scale), zeros = _mm512_set1_ps((float)zero);
  const __m512 low = _mm512_setzero_ps(), high = _mm512_set1_ps(255);
  for (int64_t i = 0; i < count; i += kLanes) {
    __m512 y = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(first_lanes(count - i), x + i), inverse, zeros);
    y = _mm512_min_ps(_mm512_max_ps(y, low), high);  // in this order NaN gives 0
    _mm_storeu_si128((__m128i*)((uint8_t*)q + i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(y)));
  }
}

// 16 features of a tile, from `first` on, and the way from their sums to floats.
struct Features {
  int first;
  __mmask16 lanes;
  __m512 scale, bias, low, high;
  __m512i sums;
  __m512i zero;       // of the first row: the zero point's part of the sums
  __m512 multiplier;  // of the first row

  inline __attribute__((always_inline)) Features(const QlinearDynamicTile& tile, int at)
      : first(at), lanes(first_lanes(tile.columns - at)), scale(_mm512_load_ps(tile.scale + at)),
        bias(_mm512_load_ps(tile.bias + at)), low(_mm512_set1_ps(tile.low)), high(_mm512_set1_ps(tile.high)),
        sums(_mm512_load_si512(tile.sums + at)), zero(zero_of(tile, 0)), multiplier(multiplier_of(tile, 0)) {}

  inline __attribute__((always_inline)) __m512i zero_of(const QlinearDynamicTile& tile, int row) const {
    return _mm512_mullo_epi32(_mm512_set1_epi32(tile.x_zero[row]), sums);
  }

  inline __attribute__((always_inline)) __m512 multiplier_of(const QlinearDynamicTile& tile, int row) const {
    return _mm512_mul_ps(_mm512_set1_ps(tile.x_scale[row]), scale);
  }

  inline __attribute__((always_inline)) void finish(const QlinearDynamicTile& tile, int row, __m512i sum) const {
    const bool shared = tile.same_params;
    const __m512 acc = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, shared ? zero : zero_of(tile, row)));
    const __m512 factor = shared ? multiplier : multiplier_of(tile, row);
    __m512 y = tile.fused ? _mm512_fmadd_ps(acc, factor, bias) : _mm512_add_ps(_mm512_mul_ps(acc, factor), bias);
    y = _mm512_min_ps(high, _mm512_max_ps(low, y));  // in this order NaN passes
    float* out = tile.out + row * tile.pitch + first;
    if (lanes == 0xffff) {  // masked stores are slow on AMD
      _mm512_storeu_ps(out, y);
    } else {
      _mm512_mask_storeu_ps(out, lanes, y);
    }
  }
};

}  // namespace
}  // namespace qtool
