// 6 pixels x 16 channels: 12 accumulators of VPDPBUSD, two registers of weights, 4 bytes of a pixel broadcast from
// memory.
#include <immintrin.h>
#include <string.h>

#include "core/avxvnni.h"
#include "qconv/finish_avx2.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 2;

INLINE __m256i broadcast(const uint8_t* bytes) {
  int32_t four;
  memcpy(&four, bytes, 4);
  return _mm256_set1_epi32(four);
}

template <int R, int V>
INLINE void multiply(const QconvJob& job, const QconvTile& tile, __m256i (&sum)[R][V]) {
  for (int64_t tap = 0; tap < job.taps; tap++) {
    const int8_t* weight = static_cast<const int8_t*>(job.weight) + job.taken[tap] * job.tap_bytes;
    const int64_t offset = tile.offsets[tap] + job.offset;
    const uint8_t* pixel[R];
    UNROLL for (int r = 0; r < R; r++) pixel[r] = tile.pixels[tap * tile.step + r] + offset;
    for (int64_t i = 0; i < job.length; i += 4, weight += V * 32) {
      __m256i w[V];
      UNROLL for (int v = 0; v < V; v++) w[v] = _mm256_load_si256((const __m256i*)(weight + v * 32));
      UNROLL for (int r = 0; r < R; r++) {
        const __m256i a = broadcast(pixel[r] + i);
        UNROLL for (int v = 0; v < V; v++) add_products8(sum[r][v], a, w[v]);
      }
    }
  }
}

// All tiles from `tile` on that have R rows; returns the next.
template <int R, int V>
const QconvTile* run_tiles(const QconvJob& given, const QconvTile* tile) {
  const QconvFinish f = *given.finish;  // copies, which no store of bytes can change
  QconvJob job = given;
  job.finish = &f;
  for (; tile != job.end && tile->rows == R; tile++) {
    __m256i sum[R][V];
    start_sums(job, sum);
    multiply<R, V>(job, *tile, sum);
    finish_tile<R, V>(job, *tile, sum);
  }
  return tile;
}

using RunTiles = const QconvTile* (*)(const QconvJob& job, const QconvTile* tile);

#define ROW(R) {run_tiles<R, 1>, run_tiles<R, 2>}
constexpr RunTiles kTiles[kRows][kVectors] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

void run(const QconvJob& job) {
  for (const QconvTile* tile = job.tiles; tile != job.end;) tile = kTiles[tile->rows - 1][job.vectors - 1](job, tile);
}

}  // namespace

const QconvKernel qconv_avxvnni = {kRows, kVectors * kLanes, kLanes, 4, false, run};

}  // namespace qtool
