// 6 rows x 64 features: 24 accumulators; a step of k is 4 bytes, 4 loads of weights and 6 broadcasts for 24 vpdpbusd.
//
//   vpdpbusd  s32 += u8*s8 + u8*s8 + u8*s8 + u8*s8, without saturation
#include <immintrin.h>

#include "qlinear_dynamic/avx512.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 4;

// As assembly: gcc 12 copies and spills the accumulators of _mm512_dpbusd_epi32.
static inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i q, __m512i w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(q), "v"(w));
}

// The lines of a row of results, which are in no cache where they are many: a store that misses waits for its line, and
// all the later ones with it.
template <int V>
static inline __attribute__((always_inline)) void fetch_row(const float* out) {
  UNROLL for (int v = 0; v < V; ++v) __asm__ volatile("prefetchw %0" : : "m"(out[v * kLanes]));
  __asm__ volatile("prefetchw %0" : : "m"(out[V * kLanes - 1]));
}

template <int R, int V>
static inline __attribute__((always_inline)) void finish(const QlinearDynamicTile& tile, const __m512i (&sum)[R][V]) {
  UNROLL for (int v = 0; v < V; ++v) {
    const Features features(tile, v * kLanes);
    UNROLL for (int r = 0; r < R; ++r) features.finish(tile, r, sum[r][v]);
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
    if (R >= 4) _mm_prefetch(tile.prefetch + k * 64, _MM_HINT_T0);  // measured better than to the L2 cache alone
    if (k % 8 == 0 && k < 8 * R) fetch_row<V>(tile.out + k / 8 * tile.pitch);
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

const QlinearDynamicKernel qlinear_dynamic_avx512vnni = {
    kRows, kVectors * kLanes, kLanes, 4, 1, 4, 1, 1, min_max, quantize, run};

}  // namespace qtool
