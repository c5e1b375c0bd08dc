// 4 pixels x 16 channels, twice. One is for all weights: VPMADDUBSW would saturate, so bytes become 16-bit numbers. The 4
// bytes of a pixel are broadcast and split into even and odd ones by a mask and a shift, which meet weights packed as
// int16 in that order. The other splits the weights instead, so that VPMADDUBSW is exact: 3 instructions in place of 4.
#include <immintrin.h>
#include <string.h>

#include "qconv/qconv.h"

namespace qtool {
namespace {

constexpr int kRows = 4, kVectors = 2, kLanes = 8, kColumns = kVectors * kLanes;

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

INLINE __m256i broadcast(const uint8_t* bytes) {
  int32_t four;
  memcpy(&four, bytes, 4);
  return _mm256_set1_epi32(four);
}

INLINE void dot(__m256i& sum, __m256i a, __m256i w) { sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, w)); }

template <int R>
INLINE void find_tap(const QconvJob& job, const QconvTile& tile, int64_t tap, const uint8_t* (&pixel)[R]) {
  const int64_t offset = tile.offsets[tap] + job.offset;
  UNROLL for (int r = 0; r < R; r++) pixel[r] = tile.pixels[tap * tile.step + r] + offset;
}

INLINE const __m256i* tap_weight(const QconvJob& job, int64_t tap) {
  return reinterpret_cast<const __m256i*>(static_cast<const uint8_t*>(job.weight) + job.taken[tap] * job.tap_bytes);
}

template <int R, int V>
INLINE void multiply(const QconvJob& job, const QconvTile& tile, __m256i (&sum)[R][V]) {
  const __m256i even = _mm256_set1_epi16(0xff);
  for (int64_t tap = 0; tap < job.taps; tap++) {
    const __m256i* weight = tap_weight(job, tap);
    const uint8_t* pixel[R];
    find_tap<R>(job, tile, tap, pixel);
    for (int64_t i = 0; i < job.length; i += 4, weight += V * 2) {
      UNROLL for (int r = 0; r < R; r++) {
        const __m256i a = broadcast(pixel[r] + i);
        const __m256i first = _mm256_and_si256(a, even), second = _mm256_srli_epi16(a, 8);
        UNROLL for (int v = 0; v < V; v++) {
          dot(sum[r][v], first, weight[v * 2]);
          dot(sum[r][v], second, weight[v * 2 + 1]);
        }
      }
    }
  }
}

template <int R, int V>
INLINE void add_pairs(const uint8_t* const (&pixel)[R], int64_t i, const __m256i* weight, __m256i (&sum)[R][V]) {
  UNROLL for (int r = 0; r < R; r++) {
    const __m256i a = broadcast(pixel[r] + i);
    UNROLL for (int v = 0; v < V; v++) dot(sum[r][v], _mm256_maddubs_epi16(a, weight[v]), _mm256_set1_epi16(1));
  }
}

template <int R, int V>
INLINE void multiply_split(const QconvJob& job, const QconvTile& tile, __m256i (&sum)[R][V]) {
  for (int64_t tap = 0; tap < job.taps; tap++) {
    const __m256i* weight = tap_weight(job, tap);
    const uint8_t* pixel[R];
    find_tap<R>(job, tile, tap, pixel);
    for (int64_t i = 0; i < job.length; i += 4, weight += V) add_pairs<R, V>(pixel, i, weight, sum);
    const QconvRest& rest = *job.rest;
    const int32_t first = rest.begins[job.taken[tap]], end = rest.begins[job.taken[tap] + 1];
    weight = reinterpret_cast<const __m256i*>(rest.weight) + int64_t{first} * V;
    for (int32_t s = first; s < end; s++, weight += V) add_pairs<R, V>(pixel, rest.at[s], weight, sum);
  }
}

INLINE __m256i rounded(const QconvJob& job, __m256i sum, int column, const uint8_t* residual) {
  const QconvFinish& f = *job.finish;
  __m256 r = _mm256_add_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(job.bias + column));
  r = _mm256_mul_ps(r, _mm256_load_ps(job.multiplier + column));
  if (residual != NULL) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)(residual + column));
    const __m256 other = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(f.res_zero));
    r = _mm256_add_ps(r, _mm256_mul_ps(other, _mm256_set1_ps(f.res_multiplier)));
  }
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(r, _mm256_set1_ps(f.low)), _mm256_set1_ps(f.high)));
}

template <int R, int V>
INLINE void finish(const QconvJob& job, const QconvTile& tile, const __m256i (&sum)[R][V]) {
  const __m256i zero = _mm256_set1_epi32(job.finish->out_zero);
  UNROLL for (int r = 0; r < R; r++) {
    const int64_t at = tile.outputs[r];
    uint8_t bytes[kColumns];
    const bool add = job.residual != NULL;
    if (add) memcpy(bytes, job.residual + at, (size_t)job.columns);
    __m256i q[kVectors] = {zero, zero};
    UNROLL for (int v = 0; v < V; v++) {
      q[v] = _mm256_add_epi32(rounded(job, sum[r][v], v * kLanes, add ? bytes : NULL), zero);
    }
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xd8);
    const __m128i result = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    if (job.columns == kColumns) {
      _mm_storeu_si128((__m128i*)(job.out + at), result);
    } else {
      _mm_storeu_si128((__m128i*)bytes, result);
      memcpy(job.out + at, bytes, (size_t)job.columns);
    }
  }
}

template <int R, int V, bool kSplit>
void run_tile(const QconvJob& job, const QconvTile& tile) {
  __m256i sum[R][V];
  UNROLL for (int v = 0; v < V; v++) {
    const __m256i start = _mm256_load_si256((const __m256i*)(job.start + v * kLanes));
    UNROLL for (int r = 0; r < R; r++) sum[r][v] = start;
  }
  if (kSplit) {
    multiply_split<R, V>(job, tile, sum);
  } else {
    multiply<R, V>(job, tile, sum);
  }
  finish<R, V>(job, tile, sum);
}

using RunTile = void (*)(const QconvJob& job, const QconvTile& tile);

template <bool kSplit>
void run(const QconvJob& job) {
  static constexpr RunTile kTiles[kRows][kVectors] = {
      {run_tile<1, 1, kSplit>, run_tile<1, 2, kSplit>},
      {run_tile<2, 1, kSplit>, run_tile<2, 2, kSplit>},
      {run_tile<3, 1, kSplit>, run_tile<3, 2, kSplit>},
      {run_tile<4, 1, kSplit>, run_tile<4, 2, kSplit>},
  };
  for (const QconvTile* tile = job.tiles; tile != job.end; tile++) kTiles[tile->rows - 1][job.vectors - 1](job, *tile);
}

}  // namespace

const QconvKernel qconv_avx2 = {kRows, kColumns, kLanes, 2, false, run<false>};
const QconvKernel qconv_avx2_pairs = {kRows, kColumns, kLanes, 1, false, run<true>, true};

}  // namespace qtool
