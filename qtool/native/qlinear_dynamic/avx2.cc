// 6 rows x 16 features: 12 accumulators. Exact: q is kept as 16-bit numbers and weights are widened when loaded, since
// the sum of two products of u8 and s8 does not fit the 16 bits that vpmaddubsw saturates to; where q is reduced to 128 at
// most it does, and bytes are multiplied.
//
//   vpmaddwd    s32 = s16*s16 + s16*s16
//   vpmaddubsw  s16 = u8*s8 + u8*s8
#include <immintrin.h>

#include "qlinear_dynamic/qlinear_dynamic.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 2, kLanes = 8;

#define UNROLL _Pragma("GCC unroll 8")

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
