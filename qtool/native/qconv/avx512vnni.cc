// 6 pixels x 64 channels: 24 accumulators, 4 registers of weights, 4 bytes of a pixel broadcast from memory. Per step
// of k there are 24 VPDPBUSD for 10 loads, so that the multiplier units never wait (one a cycle on Zen 4, two on Xeons).
#include <immintrin.h>
#include <string.h>

#include "qconv/qconv.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 4, kLanes = 16;

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

// With the intrinsic, GCC 12 copies and spills the accumulators (a third of the speed).
INLINE void dot(__m512i& sum, __m512i a, __m512i w) { __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w)); }

INLINE __m512i broadcast(const uint8_t* bytes) {
  int32_t four;
  memcpy(&four, bytes, 4);
  return _mm512_set1_epi32(four);
}

template <int R, int V>
INLINE void multiply(const QconvTile& tile, __m512i (&sum)[R][V]) {
  const int8_t* weight = static_cast<const int8_t*>(tile.weight);
  for (int64_t tap = 0; tap < tile.taps; tap++) {
    const uint8_t* pixel[R];
    UNROLL for (int r = 0; r < R; r++) pixel[r] = tile.pixels[tap * kRows + r] + tile.offset;
    for (int64_t i = 0; i < tile.length; i += 4, weight += V * 64) {
      __m512i w[V];
      UNROLL for (int v = 0; v < V; v++) w[v] = _mm512_load_si512(weight + v * 64);
      UNROLL for (int r = 0; r < R; r++) {
        const __m512i a = broadcast(pixel[r] + i);
        UNROLL for (int v = 0; v < V; v++) dot(sum[r][v], a, w[v]);
      }
    }
  }
}

template <bool RESIDUAL>
INLINE __m512i rounded(const QconvTile& tile, __m512i sum, int row, int column, __mmask16 lanes) {
  const QconvFinish& f = *tile.finish;
  __m512 r = _mm512_add_ps(_mm512_cvtepi32_ps(sum), _mm512_load_ps(tile.bias + column));
  r = _mm512_mul_ps(r, _mm512_load_ps(tile.multiplier + column));
  if (RESIDUAL) {
    const __m128i bytes = _mm_maskz_loadu_epi8(lanes, tile.residual + row * tile.pitch + column);
    const __m512 q = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), _mm512_set1_ps(f.res_zero));
    r = _mm512_add_ps(r, _mm512_mul_ps(q, _mm512_set1_ps(f.res_multiplier)));
  }
  // What is too low for an int32 becomes the lowest one, and packing clamps that as it should. What is too high would
  // become the lowest one, too: hence the minimum.
  return _mm512_cvtps_epi32(_mm512_min_ps(r, _mm512_set1_ps(f.high)));
}

template <int R, int V, bool RESIDUAL>
INLINE void finish(const QconvTile& tile, const __m512i (&sum)[R][V]) {
  const QconvFinish& f = *tile.finish;
  const __m512i zero = _mm512_set1_epi16((int16_t)f.out_zero), low = _mm512_set1_epi8((char)f.out_min);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __mmask64 lanes = ~(__mmask64)0 >> (64 - tile.columns);
  UNROLL for (int r = 0; r < R; r++) {
    __m512i q[kVectors];
    UNROLL for (int v = 0; v < kVectors; v++) {
      q[v] = v < V ? rounded<RESIDUAL>(tile, sum[r][v < V ? v : 0], r, v * kLanes, (__mmask16)(lanes >> v * kLanes))
                   : _mm512_setzero_si512();
    }
    const __m512i left = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), zero);
    const __m512i right = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), zero);
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(left, right));
    _mm512_mask_storeu_epi8(tile.out + r * tile.pitch, lanes, _mm512_max_epu8(bytes, low));
  }
}

template <int R, int V>
void run_tile(const QconvTile& tile) {
  __m512i sum[R][V];
  UNROLL for (int v = 0; v < V; v++) {
    const __m512i start = _mm512_load_si512(tile.start + v * kLanes);
    UNROLL for (int r = 0; r < R; r++) sum[r][v] = start;
  }
  multiply<R, V>(tile, sum);
  if (tile.residual != nullptr) {
    finish<R, V, true>(tile, sum);
  } else {
    finish<R, V, false>(tile, sum);
  }
}

using RunTile = void (*)(const QconvTile&);
#define ROW(R) {run_tile<R, 1>, run_tile<R, 2>, run_tile<R, 3>, run_tile<R, 4>}
constexpr RunTile kTiles[kRows][kVectors] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

void run(const QconvTile& tile) { kTiles[tile.rows - 1][tile.vectors - 1](tile); }

}  // namespace

const QconvKernel qconv_avx512vnni = {kRows, kVectors * kLanes, kLanes, 1, run};

}  // namespace qtool
