// 6 pixels x 16 channels: 12 accumulators, 2 registers of weights and one for the pixel's float fill the 16 there are.
#include <immintrin.h>

#include "sconv/sconv.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 2, kLanes = 8;

#define UNROLL _Pragma("GCC unroll 8")

template <int R, int V>
static inline __attribute__((always_inline)) void multiply(const SconvTile& tile, __m256 (&sum)[R][V]) {
  const float* weight = tile.weight;
  for (int64_t tap = 0; tap < tile.taps; ++tap) {
    const float* pixel[R];
    UNROLL for (int r = 0; r < R; ++r) pixel[r] = tile.pixels[tap * kRows + r] + tile.offset;
    for (int64_t i = 0; i < tile.length; ++i, weight += V * kLanes) {
      __m256 w[V];
      UNROLL for (int v = 0; v < V; ++v) w[v] = _mm256_load_ps(weight + v * kLanes);
      UNROLL for (int r = 0; r < R; ++r) {
        const __m256 a = _mm256_broadcast_ss(pixel[r] + i);
        UNROLL for (int v = 0; v < V; ++v) sum[r][v] = _mm256_fmadd_ps(a, w[v], sum[r][v]);
      }
    }
  }
}

// All ones in the first `count` lanes.
static inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

template <int R, int V>
static inline __attribute__((always_inline)) void finish(const SconvTile& tile, const __m256 (&sum)[R][V]) {
  const __m256 low = _mm256_set1_ps(tile.low), high = _mm256_set1_ps(tile.high);
  UNROLL for (int v = 0; v < V; ++v) {
    const int left = tile.columns - v * kLanes;
    const __m256i lanes = first_lanes(left);
    const __m256 bias = _mm256_load_ps(tile.bias + v * kLanes);
    UNROLL for (int r = 0; r < R; ++r) {
      const int64_t at = r * tile.pitch + v * kLanes;
      __m256 y = _mm256_add_ps(sum[r][v], bias);
      const float* residual = tile.residual + r * tile.residual_pitch + v * kLanes;
      if (tile.residual != nullptr) y = _mm256_add_ps(y, _mm256_maskload_ps(residual, lanes));
      y = _mm256_min_ps(high, _mm256_max_ps(low, y));  // in this order NaN passes
      if (left >= kLanes) {  // masked stores are slow on AMD
        _mm256_storeu_ps(tile.out + at, y);
      } else {
        _mm256_maskstore_ps(tile.out + at, lanes, y);
      }
    }
  }
}

template <int R, int V>
static void run_tile(const SconvTile& tile) {
  __m256 sum[R][V];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) {
      sum[r][v] = tile.first ? _mm256_setzero_ps() : _mm256_load_ps(tile.partial + (r * V + v) * kLanes);
    }
  }
  multiply<R, V>(tile, sum);
  if (tile.last) {
    finish<R, V>(tile, sum);
    return;
  }
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) _mm256_store_ps(tile.partial + (r * V + v) * kLanes, sum[r][v]);
  }
}

using RunTile = void (*)(const SconvTile&);
#define ROW(R) {run_tile<R, 1>, run_tile<R, 2>}
constexpr RunTile kTiles[kRows][kVectors] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

void run(const SconvTile& tile) { kTiles[tile.rows - 1][tile.vectors - 1](tile); }

}  // namespace

const SconvKernel sconv_avx2 = {kRows, kVectors * kLanes, kLanes, run};

}  // namespace qtool
