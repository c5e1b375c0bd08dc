// 6 pixels x 64 channels, or 12 x 32: 24 accumulators, up to 4 registers of weights, 4 bytes of a pixel broadcast from
// memory. Per step of k there are 24 VPDPBUSD for 10 (14) loads, so that the multiplier units never wait (they do one a
// cycle on Zen 4, two on Xeons). What is left are the sums' way to bytes, some 20 instructions for 64 of them.
#include <immintrin.h>
#include <string.h>

#include "qconv/finish_avx512.h"
#include "qconv/qconv.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 4, kNarrowRows = 12, kNarrowVectors = 2;

// With the intrinsic, GCC 12 copies and spills the accumulators (a third of the speed).
INLINE void dot(__m512i& sum, __m512i a, __m512i w) { __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w)); }

INLINE __m512i broadcast(const uint8_t* bytes) {
  int32_t four;
  memcpy(&four, bytes, 4);
  return _mm512_set1_epi32(four);
}

template <int R, int V>
INLINE void multiply(const QconvJob& job, const QconvTile& tile, __m512i (&sum)[R][V]) {
  for (int64_t tap = 0; tap < job.taps; tap++) {
    const int8_t* weight = static_cast<const int8_t*>(job.weight) + job.taken[tap] * job.tap_bytes;
    const int64_t offset = tile.offsets[tap] + job.offset;
    const uint8_t* pixel[R];
    UNROLL for (int r = 0; r < R; r++) pixel[r] = tile.pixels[tap * tile.step + r] + offset;
    for (int64_t i = 0; i < job.length; i += 4, weight += V * 64) {
      __m512i w[V];
      UNROLL for (int v = 0; v < V; v++) w[v] = _mm512_load_si512(weight + v * 64);
      UNROLL for (int r = 0; r < R; r++) {
        const __m512i a = broadcast(pixel[r] + i);
        UNROLL for (int v = 0; v < V; v++) dot(sum[r][v], a, w[v]);
      }
    }
  }
}

// All tiles from `tile` on that have R rows; returns the next.
template <int R, int V>
const QconvTile* run_tiles(const QconvJob& given, const QconvTile* tile) {
  // A copy, which no store of bytes can change. (Not one of *finish, too: GCC would keep its numbers in vector
  // registers over all tiles, and spill sums for them.)
  const QconvJob job = given;
  for (; tile != job.end && tile->rows == R; tile++) {
    __m512i sum[R][V];
    UNROLL for (int v = 0; v < V; v++) {
      const __m512i start = _mm512_load_si512(job.start + v * kLanes);
      UNROLL for (int r = 0; r < R; r++) sum[r][v] = start;
    }
    multiply<R, V>(job, *tile, sum);
    finish_tile<R, V>(job, *tile, sum);
  }
  return tile;
}

using RunTiles = const QconvTile* (*)(const QconvJob& job, const QconvTile* tile);

#define ROW(R) {run_tiles<R, 1>, run_tiles<R, 2>, run_tiles<R, 3>, run_tiles<R, 4>}
constexpr RunTiles kTiles[kRows][kVectors] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

#define NARROW(R) {run_tiles<R, 1>, run_tiles<R, 2>}
constexpr RunTiles kNarrowTiles[kNarrowRows][kNarrowVectors] = {NARROW(1), NARROW(2),  NARROW(3),  NARROW(4),
                                                                NARROW(5), NARROW(6),  NARROW(7),  NARROW(8),
                                                                NARROW(9), NARROW(10), NARROW(11), NARROW(12)};

void run(const QconvJob& job) {
  for (const QconvTile* tile = job.tiles; tile != job.end;) tile = kTiles[tile->rows - 1][job.vectors - 1](job, tile);
}

void run_narrow(const QconvJob& job) {
  for (const QconvTile* tile = job.tiles; tile != job.end;) {
    tile = kNarrowTiles[tile->rows - 1][job.vectors - 1](job, tile);
  }
}

}  // namespace

const QconvKernel qconv_avx512vnni = {kRows, kVectors * kLanes, kLanes, 4, false, run};
const QconvKernel qconv_avx512vnni_narrow = {kNarrowRows, kNarrowVectors * kLanes, kLanes, 4, true, run_narrow};

}  // namespace qtool
