// 6 pixels x 64 channels: 24 accumulators, 4 registers of weights, the pixels' floats broadcast from memory. One
// multiply-add a cycle is what Zen 4 has and two is what others have; per step of k there are 24 for 10 loads.
#include <immintrin.h>

#include "sconv/sconv.h"

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 finds it in its own _mm512_max_ps

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 4, kLanes = 16;

#define UNROLL _Pragma("GCC unroll 8")

template <int R, int V>
static inline __attribute__((always_inline)) void multiply(const SconvTile& tile, __m512 (&sum)[R][V]) {
  const float* weight = tile.weight;
  for (int64_t tap = 0; tap < tile.taps; ++tap) {
    const float* pixel[R];
    UNROLL for (int r = 0; r < R; ++r) pixel[r] = tile.pixels[tap * kRows + r] + tile.offset;
    for (int64_t i = 0; i < tile.length; ++i, weight += V * kLanes) {
      __m512 w[V];
      UNROLL for (int v = 0; v < V; ++v) w[v] = _mm512_load_ps(weight + v * kLanes);
      UNROLL for (int r = 0; r < R; ++r) {
        const __m512 a = _mm512_set1_ps(pixel[r][i]);
        UNROLL for (int v = 0; v < V; ++v) sum[r][v] = _mm512_fmadd_ps(a, w[v], sum[r][v]);
      }
    }
  }
}

template <int R, int V>
static inline __attribute__((always_inline)) void finish(const SconvTile& tile, const __m512 (&sum)[R][V]) {
  const __m512 low = _mm512_set1_ps(tile.low), high = _mm512_set1_ps(tile.high);
  UNROLL for (int v = 0; v < V; ++v) {
    const int left = tile.columns - v * kLanes;
    const __mmask16 lanes = left >= kLanes ? 0xffff : (__mmask16)((1u << left) - 1);
    const __m512 bias = _mm512_load_ps(tile.bias + v * kLanes);
    UNROLL for (int r = 0; r < R; ++r) {
      const int64_t at = r * tile.pitch + v * kLanes;
      __m512 y = _mm512_add_ps(sum[r][v], bias);
      const float* residual = tile.residual + r * tile.residual_pitch + v * kLanes;
      if (tile.residual != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, residual));
      y = _mm512_min_ps(high, _mm512_max_ps(low, y));  // in this order NaN passes
      _mm512_mask_storeu_ps(tile.out + at, lanes, y);
    }
  }
}

template <int R, int V>
static void run_tile(const SconvTile& tile) {
  __m512 sum[R][V];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) {
      sum[r][v] = tile.first ? _mm512_setzero_ps() : _mm512_load_ps(tile.partial + (r * V + v) * kLanes);
    }
  }
  if (tile.last) {
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int v = 0; v < V; ++v) __builtin_prefetch(tile.out + r * tile.pitch + v * kLanes, 1);
    }
  }
  multiply<R, V>(tile, sum);
  if (tile.last) {
    finish<R, V>(tile, sum);
    return;
  }
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) _mm512_store_ps(tile.partial + (r * V + v) * kLanes, sum[r][v]);
  }
}

using RunTile = void (*)(const SconvTile&);
#define ROW(R) {run_tile<R, 1>, run_tile<R, 2>, run_tile<R, 3>, run_tile<R, 4>}
constexpr RunTile kTiles[kRows][kVectors] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

void run(const SconvTile& tile) { kTiles[tile.rows - 1][tile.vectors - 1](tile); }

}  // namespace

const SconvKernel sconv_avx512 = {kRows, kVectors * kLanes, kLanes, run};

}  // namespace qtool
