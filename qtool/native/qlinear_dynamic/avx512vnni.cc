// 6 rows x 64 features: 24 accumulators; a step of k is 4 bytes, 4 loads of weights and 6 broadcasts for 24 vpdpbusd.
//
//   vpdpbusd  s32 += u8*s8 + u8*s8 + u8*s8 + u8*s8, without saturation
#include <immintrin.h>

#include "qlinear_dynamic/qlinear_dynamic.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // both: gcc 12 finds it in its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 4, kLanes = 16;

#define UNROLL _Pragma("GCC unroll 8")

// As assembly: gcc 12 copies and spills the accumulators of _mm512_dpbusd_epi32.
static inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i q, __m512i w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(q), "v"(w));
}

static inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
}

void min_max(const float* x, int64_t count, float range[2]) {
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

void quantize(const float* x, int64_t count, float inverse_scale, int32_t zero, void* q) {
  const __m512 inverse = _mm512_set1_ps(inverse_scale), zeros = _mm512_set1_ps((float)zero);
  const __m512 low = _mm512_setzero_ps(), high = _mm512_set1_ps(255);
  for (int64_t i = 0; i < count; i += kLanes) {
    __m512 y = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(first_lanes(count - i), x + i), inverse, zeros);
    y = _mm512_min_ps(_mm512_max_ps(y, low), high);  // in this order NaN gives 0
    _mm_storeu_si128((__m128i*)((uint8_t*)q + i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(y)));
  }
}

template <int R, int V>
static inline __attribute__((always_inline)) void finish(const QlinearDynamicTile& tile, const __m512i (&sum)[R][V]) {
  const __m512 low = _mm512_set1_ps(tile.low), high = _mm512_set1_ps(tile.high);
  UNROLL for (int v = 0; v < V; ++v) {
    const __mmask16 lanes = first_lanes(tile.columns - v * kLanes);
    const __m512 scale = _mm512_load_ps(tile.scale + v * kLanes), bias = _mm512_load_ps(tile.bias + v * kLanes);
    const __m512i sums = _mm512_load_si512(tile.sums + v * kLanes);
    UNROLL for (int r = 0; r < R; ++r) {
      const __m512i zero = _mm512_mullo_epi32(_mm512_set1_epi32(tile.x_zero[r]), sums);
      const __m512 acc = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r][v], zero));
      const __m512 multiplier = _mm512_mul_ps(_mm512_set1_ps(tile.x_scale[r]), scale);
      __m512 y = tile.fused ? _mm512_fmadd_ps(acc, multiplier, bias) : _mm512_add_ps(_mm512_mul_ps(acc, multiplier), bias);
      y = _mm512_min_ps(high, _mm512_max_ps(low, y));  // in this order NaN passes
      _mm512_mask_storeu_ps(tile.out + r * tile.pitch + v * kLanes, lanes, y);
    }
  }
}

template <int R, int V>
static void run_tile(const QlinearDynamicTile& tile) {
  __m512i sum[R][V];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) sum[r][v] = _mm512_setzero_si512();
  }
  const int32_t* row[R];  // 4 bytes of k each
  UNROLL for (int r = 0; r < R; ++r) row[r] = (const int32_t*)((const uint8_t*)tile.q + r * tile.q_bytes);
  const int8_t* weight = tile.weight;
  for (int64_t k = 0; k < tile.groups; ++k, weight += V * 64) {
    __m512i w[V];
    UNROLL for (int v = 0; v < V; ++v) w[v] = _mm512_load_si512(weight + v * 64);
    UNROLL for (int r = 0; r < R; ++r) {
      const __m512i q = _mm512_set1_epi32(row[r][k]);
      UNROLL for (int v = 0; v < V; ++v) dot(sum[r][v], q, w[v]);
    }
  }
  finish<R, V>(tile, sum);
}

using RunTile = void (*)(const QlinearDynamicTile&);
#define ROW(R) {run_tile<R, 1>, run_tile<R, 2>, run_tile<R, 3>, run_tile<R, 4>}
constexpr RunTile kTiles[kRows][kVectors] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

void run(const QlinearDynamicTile& tile) { kTiles[tile.rows - 1][tile.vectors - 1](tile); }

}  // namespace

const QlinearDynamicKernel qlinear_dynamic_avx512vnni = {kRows,   kVectors * kLanes, kLanes, 4, 1,
                                                         min_max, quantize,          run};

}  // namespace qtool
