// 6 rows x 16 features: 12 accumulators. Exact: q is kept as 16-bit numbers and weights are widened when loaded, since
// the sum of two products of u8 and s8 does not fit the 16 bits that vpmaddubsw saturates to; where q is reduced to 128 at
// most it does, and bytes are multiplied.
//
//   vpmaddwd    s32 = s16*s16 + s16*s16
//   vpmaddubsw  s16 = u8*s8 + u8*s8
#include <immintrin.h>

#include "qlinear_dynamic/avx2.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 2;

// As assembly, and in this order: gcc 12 multiplies all first and spills the accumulators, and Zen 3 does 8 % more of
// them a cycle with both products before both sums than in turns.
static inline __attribute__((always_inline)) void dot(__m256i (&sum)[2], __m256i q, const __m256i (&w)[2]) {
  __m256i other;
  __asm__("vpmaddwd %4, %2, %3\n\tvpmaddwd %5, %2, %2\n\tvpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
          : "+x"(sum[0]), "+x"(sum[1]), "+x"(q), "=&x"(other)
          : "x"(w[0]), "x"(w[1]));
}

static inline __attribute__((always_inline)) void dot(__m256i (&sum)[1], __m256i q, const __m256i (&w)[1]) {
  __asm__("vpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0" : "+x"(sum[0]), "+x"(q) : "x"(w[0]));
}

template <int R, int V>
static void run_tile(const QlinearDynamicTile& tile) {
  __m256i sum[R][V];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) sum[r][v] = _mm256_setzero_si256();
  }
  const int32_t* row[R];  // 2 numbers of k each
  UNROLL for (int r = 0; r < R; ++r) row[r] = (const int32_t*)((const uint8_t*)tile.q + r * tile.q_bytes);
  const int8_t* weight = tile.weight;
  for (int64_t k = 0; k < tile.groups; ++k, weight += V * 16) {
    if (R > 1) _mm_prefetch((const char*)tile.prefetch + k * 64, _MM_HINT_T0);  // of one row loads are the bound
    __m256i w[V];
    UNROLL for (int v = 0; v < V; ++v) w[v] = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)(weight + v * 16)));
    UNROLL for (int r = 0; r < R; ++r) dot(sum[r], _mm256_set1_epi32(row[r][k]), w);
  }
  finish<R, V>(tile, sum);
}

// Of bytes; the weights are read where they lie, since all registers are taken.
static inline __attribute__((always_inline)) void dot_bytes(__m256i (&sum)[2], __m256i q, const __m256i* w, __m256i one) {
  __m256i other;
  __asm__("vpmaddubsw %5, %2, %3\n\tvpmaddubsw %6, %2, %2\n\tvpmaddwd %4, %3, %3\n\tvpmaddwd %4, %2, %2\n\t"
          "vpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
          : "+x"(sum[0]), "+x"(sum[1]), "+x"(q), "=&x"(other)
          : "x"(one), "m"(w[0]), "m"(w[1]));
}

static inline __attribute__((always_inline)) void dot_bytes(__m256i (&sum)[1], __m256i q, const __m256i* w, __m256i one) {
  __asm__("vpmaddubsw %3, %1, %1\n\tvpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0"
          : "+x"(sum[0]), "+x"(q)
          : "x"(one), "m"(w[0]));
}

template <int R, int V>
static void run_reduced(const QlinearDynamicTile& tile) {
  __m256i sum[R][V];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) sum[r][v] = _mm256_setzero_si256();
  }
  const int32_t* row[R];  // 4 numbers of k each
  UNROLL for (int r = 0; r < R; ++r) row[r] = (const int32_t*)((const uint8_t*)tile.q + r * tile.q_bytes);
  const __m256i one = _mm256_set1_epi16(1);
  const __m256i* weight = (const __m256i*)tile.weight;
  for (int64_t k = 0; k < tile.groups; ++k, weight += V) {
    if (R > 1) _mm_prefetch((const char*)tile.prefetch + k * 64, _MM_HINT_T0);
    UNROLL for (int r = 0; r < R; ++r) dot_bytes(sum[r], _mm256_set1_epi32(row[r][k]), weight, one);
  }
  finish<R, V>(tile, sum);
}

using RunTile = void (*)(const QlinearDynamicTile&);
#define ROW(RUN, R) {RUN<R, 1>, RUN<R, 2>}
#define TILES(RUN) {ROW(RUN, 1), ROW(RUN, 2), ROW(RUN, 3), ROW(RUN, 4), ROW(RUN, 5), ROW(RUN, 6)}
constexpr RunTile kTiles[kRows][kVectors] = TILES(run_tile), kReduced[kRows][kVectors] = TILES(run_reduced);

void run(const QlinearDynamicTile& tile) { kTiles[tile.rows - 1][tile.vectors - 1](tile); }

void run_bytes(const QlinearDynamicTile& tile) { kReduced[tile.rows - 1][tile.vectors - 1](tile); }

}  // namespace

const QlinearDynamicKernel qlinear_dynamic_avx2 = {
    kRows, kVectors * kLanes, kLanes, 2, 2, 2, 1, 1, min_max, quantize<false>, run};
const QlinearDynamicKernel qlinear_dynamic_avx2_reduced = {
    kRows, kVectors * kLanes, kLanes, 4, 1, 4, 1, 1, min_max, quantize<true>, run_bytes, true};

}  // namespace qtool
