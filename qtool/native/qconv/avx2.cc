// 6 pixels x 16 channels, for all weights. VPMADDUBSW would saturate, so bytes become 16-bit numbers: those of the pixels
// once for all panels, those of the weights when loaded. A step of 2 bytes is then 2 loads that widen, 6 that broadcast,
// and 12 VPMADDWD with a VPADDD each, whose units are what bounds it.
#include "qconv/finish_avx2.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kVectors = 2, kGroup = 2;

INLINE __m256i broadcast(const uint8_t* words) {
  int32_t two;
  memcpy(&two, words, 4);
  return _mm256_set1_epi32(two);
}

INLINE __m256i load_weight(const int8_t* weight) {
  return _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)weight));
}

// Both products before both sums: Zen 3 then does 8 % more of them a cycle than in turns. As assembly, since gcc 12
// multiplies all first and spills sums.
INLINE void dot(__m256i (&sum)[2], __m256i a, const __m256i (&w)[2]) {
  __m256i other;
  __asm__("vpmaddwd %4, %2, %3\n\tvpmaddwd %5, %2, %2\n\tvpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
          : "+x"(sum[0]), "+x"(sum[1]), "+x"(a), "=&x"(other)
          : "x"(w[0]), "x"(w[1]));
}

INLINE void dot(__m256i (&sum)[1], __m256i a, const __m256i (&w)[1]) {
  __asm__("vpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0" : "+x"(sum[0]), "+x"(a) : "x"(w[0]));
}

template <int R, int V>
INLINE void multiply(const QconvJob& job, const QconvTile& tile, __m256i (&sum)[R][V]) {
  const uint8_t* row[R];
  UNROLL for (int r = 0; r < R; r++) row[r] = tile.words + r * job.words_pitch;
  for (int64_t tap = 0; tap < job.taps; tap++) {
    const int8_t* weight = static_cast<const int8_t*>(job.weight) + job.taken[tap] * job.tap_bytes;
    for (int64_t i = 0; i < job.length * 2; i += kGroup * 2, weight += V * kLanes * kGroup) {
      __m256i w[V];
      UNROLL for (int v = 0; v < V; v++) w[v] = load_weight(weight + v * kLanes * kGroup);
      UNROLL for (int r = 0; r < R; r++) dot(sum[r], broadcast(row[r] + i), w);
    }
    UNROLL for (int r = 0; r < R; r++) row[r] += job.length * 2;
  }
}

// All tiles from `tile` on that have R rows; returns the next.
template <int R, int V>
const QconvTile* run_tiles(const QconvJob& given, const QconvTile* tile) {
  const QconvJob job = given;  // a copy, which no store of bytes can change
  for (; tile != job.end && tile->rows == R; tile++) {
    __m256i sum[R][V];
    start_sums<R, V>(job, sum);
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

// `count` is a multiple of 4.
INLINE void widen_bytes(const uint8_t* bytes, int64_t count, uint8_t* words) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(bytes + i)));
    _mm256_storeu_si256((__m256i*)(words + i * 2), wide);
  }
  if (count & 8) {
    _mm_storeu_si128((__m128i*)(words + i * 2), _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)(bytes + i))));
    i += 8;
  }
  if (count & 4) {
    int32_t four;
    memcpy(&four, bytes + i, 4);
    _mm_storel_epi64((__m128i*)(words + i * 2), _mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
  }
}

void widen(const QconvJob& job) {
  for (const QconvTile* tile = job.tiles; tile != job.end; tile++) {
    for (int64_t r = 0; r < tile->rows; r++) {
      uint8_t* words = tile->words + r * job.words_pitch;
      for (int64_t tap = 0; tap < job.taps; tap++, words += job.length * 2) {
        widen_bytes(tile->pixels[tap * tile->step + r] + tile->offsets[tap] + job.offset, job.length, words);
      }
    }
  }
}

}  // namespace

const QconvKernel qconv_avx2 = {kRows, kVectors * kLanes, kLanes, kGroup, false, run, false, widen};

}  // namespace qtool
