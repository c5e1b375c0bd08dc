// 6 rows x 16 features: 12 accumulators of VPDPBUSD; a step of k is 4 bytes.
#include <immintrin.h>

#include "core/avxvnni.h"
#include "qlinear_dynamic/avx2.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 2;

template <int R, int V>
static void run_tile(const QlinearDynamicTile& tile) {
  __m256i sum[R][V];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) sum[r][v] = _mm256_setzero_si256();
  }
  const int32_t* row[R];  // 4 bytes of k each
  UNROLL for (int r = 0; r < R; ++r) row[r] = (const int32_t*)((const uint8_t*)tile.q + r * tile.q_bytes);
  const __m256i* weight = (const __m256i*)tile.weight;
  for (int64_t k = 0; k < tile.groups; ++k, weight += V) {
    if (R > 1) _mm_prefetch((const char*)tile.prefetch + k * 64, _MM_HINT_T0);  // of one row loads are the bound
    __m256i w[V];
    UNROLL for (int v = 0; v < V; ++v) w[v] = _mm256_load_si256(weight + v);
    UNROLL for (int r = 0; r < R; ++r) {
      const __m256i q = _mm256_set1_epi32(row[r][k]);
      UNROLL for (int v = 0; v < V; ++v) add_products8(sum[r][v], q, w[v]);
    }
  }
  finish<R, V>(tile, sum);
}

using RunTile = void (*)(const QlinearDynamicTile&);
#define ROW(R) {run_tile<R, 1>, run_tile<R, 2>}
constexpr RunTile kTiles[kRows][kVectors] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

void run(const QlinearDynamicTile& tile) { kTiles[tile.rows - 1][tile.vectors - 1](tile); }

}  // namespace

const QlinearDynamicKernel qlinear_dynamic_avxvnni = {
    kRows, kVectors * kLanes, kLanes, 4, 1, 4, 1, 1, min_max, quantize<true>, run};

}  // namespace qtool
