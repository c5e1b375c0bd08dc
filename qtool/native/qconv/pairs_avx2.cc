// 6 pixels x 16 channels of split weights, which make VPMADDUBSW exact: 3 instructions for what takes 4 with VPMADDWD.
#include "qconv/finish_avx2.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 2, kGroup = 4;

INLINE __m256i broadcast(const uint8_t* bytes) {
  int32_t four;
  memcpy(&four, bytes, 4);
  return _mm256_set1_epi32(four);
}

// As assembly: gcc 12 multiplies all first and spills sums.
INLINE void dot(__m256i (&sum)[2], __m256i a, const __m256i* w) {
  __m256i other;
  __asm__(
      "vpmaddubsw %4, %2, %3\n\tvpmaddubsw %5, %2, %2\n\tvpmaddwd %6, %3, %3\n\tvpmaddwd %6, %2, %2\n\t"
      "vpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
      : "+x"(sum[0]), "+x"(sum[1]), "+x"(a), "=&x"(other)
      : "m"(w[0]), "m"(w[1]), "x"(_mm256_set1_epi16(1)));
}

INLINE void dot(__m256i (&sum)[1], __m256i a, const __m256i* w) {
  __asm__("vpmaddubsw %2, %1, %1\n\tvpmaddwd %3, %1, %1\n\tvpaddd %1, %0, %0"
          : "+x"(sum[0]), "+x"(a)
          : "m"(w[0]), "x"(_mm256_set1_epi16(1)));
}

template <int R, int V>
INLINE void add_pairs(const uint8_t* const (&pixel)[R], int64_t i, const __m256i* weight, __m256i (&sum)[R][V]) {
  UNROLL for (int r = 0; r < R; r++) dot(sum[r], broadcast(pixel[r] + i), weight);
}

template <int R, int V>
INLINE void multiply(const QconvJob& job, const QconvTile& tile, __m256i (&sum)[R][V]) {
  for (int64_t tap = 0; tap < job.taps; tap++) {
    const __m256i* weight =
        reinterpret_cast<const __m256i*>(static_cast<const uint8_t*>(job.weight) + job.taken[tap] * job.tap_bytes);
    const int64_t offset = tile.offsets[tap] + job.offset;
    const uint8_t* pixel[R];
    UNROLL for (int r = 0; r < R; r++) pixel[r] = tile.pixels[tap * tile.step + r] + offset;
    for (int64_t i = 0; i < job.length; i += kGroup, weight += V) add_pairs<R, V>(pixel, i, weight, sum);
    const QconvRest& rest = *job.rest;
    const int32_t first = rest.begins[job.taken[tap]], end = rest.begins[job.taken[tap] + 1];
    weight = reinterpret_cast<const __m256i*>(rest.weight) + int64_t{first} * V;
    for (int32_t s = first; s < end; s++, weight += V) add_pairs<R, V>(pixel, rest.at[s], weight, sum);
  }
}

template <int R, int V>
void run_tile(const QconvJob& job, const QconvTile& tile) {
  __m256i sum[R][V];
  start_sums<R, V>(job, sum);
  multiply<R, V>(job, tile, sum);
  finish_tile<R, V>(job, tile, sum);
}

using RunTile = void (*)(const QconvJob& job, const QconvTile& tile);

#define ROW(R) {run_tile<R, 1>, run_tile<R, 2>}
constexpr RunTile kTiles[kRows][kVectors] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

void run(const QconvJob& given) {
  const QconvJob job = given;  // a copy, which no store of bytes can change
  for (const QconvTile* tile = job.tiles; tile != job.end; tile++) kTiles[tile->rows - 1][job.vectors - 1](job, *tile);
}

}  // namespace

const QconvKernel qconv_avx2_pairs = {kRows, kVectors * kLanes, kLanes, kGroup, false, run, true};

}  // namespace qtool
