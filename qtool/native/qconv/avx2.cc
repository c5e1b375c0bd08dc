// 4 pixels x 16 channels, exact: VPMADDUBSW would saturate, so bytes become 16-bit numbers. The 4 bytes of a pixel are
// broadcast and split into even and odd ones by a mask and a shift, which meet weights packed as int16 in that order.
#include <immintrin.h>
#include <string.h>

#include "qconv/qconv.h"

namespace qtool {
namespace {

constexpr int kRows = 4, kVectors = 2, kLanes = 8;

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

INLINE __m256i broadcast(const uint8_t* bytes) {
  int32_t four;
  memcpy(&four, bytes, 4);
  return _mm256_set1_epi32(four);
}

INLINE void dot(__m256i& sum, __m256i a, __m256i w) { sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, w)); }

template <int R, int V>
INLINE void multiply(const QconvTile& tile, __m256i (&sum)[R][V]) {
  const __m256i even = _mm256_set1_epi16(0xff);
  const __m256i* weight = static_cast<const __m256i*>(tile.weight);
  for (int64_t tap = 0; tap < tile.taps; tap++) {
    const uint8_t* pixel[R];
    UNROLL for (int r = 0; r < R; r++) pixel[r] = tile.pixels[tap * kRows + r] + tile.offset;
    for (int64_t i = 0; i < tile.length; i += 4, weight += V * 2) {
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

INLINE __m256i rounded(const QconvTile& tile, __m256i sum, const uint8_t* residual, int column) {
  const QconvFinish& f = *tile.finish;
  __m256 r = _mm256_add_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(tile.bias + column));
  r = _mm256_mul_ps(r, _mm256_load_ps(tile.multiplier + column));
  if (residual != nullptr) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)(residual + column));
    const __m256 q = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(f.res_zero));
    r = _mm256_add_ps(r, _mm256_mul_ps(q, _mm256_set1_ps(f.res_multiplier)));
  }
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(r, _mm256_set1_ps(f.low)), _mm256_set1_ps(f.high)));
}

template <int R, int V>
INLINE void finish(const QconvTile& tile, const __m256i (&sum)[R][V]) {
  const __m256i zero = _mm256_set1_epi32(tile.finish->out_zero);
  UNROLL for (int r = 0; r < R; r++) {
    uint8_t residual[kVectors * kLanes];
    const bool add = tile.residual != nullptr;
    if (add) memcpy(residual, tile.residual + r * tile.pitch, (size_t)tile.columns);
    __m256i q[kVectors] = {zero, zero};
    UNROLL for (int v = 0; v < V; v++) {
      q[v] = _mm256_add_epi32(rounded(tile, sum[r][v], add ? residual : nullptr, v * kLanes), zero);
    }
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    uint8_t* out = tile.out + r * tile.pitch;
    if (tile.columns == kVectors * kLanes) {
      _mm_storeu_si128((__m128i*)out, bytes);
    } else {
      uint8_t tail[16];
      _mm_storeu_si128((__m128i*)tail, bytes);
      memcpy(out, tail, (size_t)tile.columns);
    }
  }
}

template <int R, int V>
void run_tile(const QconvTile& tile) {
  __m256i sum[R][V];
  UNROLL for (int v = 0; v < V; v++) {
    const __m256i start = _mm256_load_si256((const __m256i*)(tile.start + v * kLanes));
    UNROLL for (int r = 0; r < R; r++) sum[r][v] = start;
  }
  multiply<R, V>(tile, sum);
  finish<R, V>(tile, sum);
}

using RunTile = void (*)(const QconvTile&);
constexpr RunTile kTiles[kRows][kVectors] = {
    {run_tile<1, 1>, run_tile<1, 2>},
    {run_tile<2, 1>, run_tile<2, 2>},
    {run_tile<3, 1>, run_tile<3, 2>},
    {run_tile<4, 1>, run_tile<4, 2>},
};

void run(const QconvTile& tile) { kTiles[tile.rows - 1][tile.vectors - 1](tile); }

}  // namespace

const QconvKernel qconv_avx2 = {kRows, kVectors * kLanes, kLanes, 2, run};

}  // namespace qtool
