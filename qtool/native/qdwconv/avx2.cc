// One pixel x 16 channels, exact: bytes become 16-bit numbers, those of two taps are interleaved and meet weights
// packed as int16 in VPMADDWD.
#include <immintrin.h>
#include <string.h>

#include "qdwconv/qdwconv.h"

namespace qtool {
namespace {

constexpr int kGroup = 2, kVectors = 2, kLanes = 2, kWords = 8, kChannels = kVectors * kWords;

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 2")

INLINE __m256i load_words(const uint8_t* bytes) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)bytes)); }

INLINE void accumulate(__m256i (&sum)[kVectors], __m256i a, __m256i b, const __m256i* weight) {
  sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), weight[0]));
  sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), weight[1]));
}

INLINE __m256i rounded(const QconvFinish& f, const QdwconvBlock& block, __m256i sum, int v, const __m256i* residual) {
  __m256 r = _mm256_add_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(block.bias + v * kWords));
  r = _mm256_mul_ps(r, _mm256_load_ps(block.multiplier + v * kWords));
  if (residual != NULL) {
    const __m256 q = _mm256_sub_ps(_mm256_cvtepi32_ps(*residual), _mm256_set1_ps(f.res_zero));
    r = _mm256_add_ps(r, _mm256_mul_ps(q, _mm256_set1_ps(f.res_multiplier)));
  }
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(r, _mm256_set1_ps(f.low)), _mm256_set1_ps(f.high)));
}

INLINE void finish(const QdwconvLine& line, const QdwconvBlock& block, int64_t x, const __m256i (&sum)[kVectors]) {
  const QconvFinish& f = line.shape->finish;
  const int64_t at = x * line.shape->channels + block.first;
  const bool add = line.residual != NULL;
  __m256i residual[kVectors];
  if (add) {
    uint8_t bytes[kChannels] = {};
    memcpy(bytes, line.residual + at, (size_t)block.channels);
    const __m256i words = load_words(bytes), zero = _mm256_setzero_si256();
    residual[0] = _mm256_unpacklo_epi16(words, zero);
    residual[1] = _mm256_unpackhi_epi16(words, zero);
  }
  __m256i q[kVectors];
  UNROLL for (int v = 0; v < kVectors; v++) {
    q[v] = _mm256_add_epi32(rounded(f, block, sum[v], v, add ? residual + v : NULL), _mm256_set1_epi32(f.out_zero));
  }
  const __m256i words = _mm256_packs_epi32(q[0], q[1]);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  if (block.channels == kChannels) {
    _mm_storeu_si128((__m128i*)(line.out + at), bytes);
  } else {
    uint8_t tail[kChannels];
    _mm_storeu_si128((__m128i*)tail, bytes);
    memcpy(line.out + at, tail, (size_t)block.channels);
  }
}

void run_pixel(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  const __m256i* weight = static_cast<const __m256i*>(block.weight);
  __m256i sum[kVectors];
  UNROLL for (int v = 0; v < kVectors; v++) sum[v] = _mm256_load_si256((const __m256i*)(block.start + v * kWords));
  for (int g = 0; g < line.shape->groups; g++, weight += kVectors) {
    const uint8_t* const* p = line.pointers + g * kGroup;
    accumulate(sum, load_words(p[0] + block.first), load_words(p[1] + block.first), weight);
  }
  finish(line, block, x, sum);
}

void run(const QdwconvLine& line) {
  const QdwconvShape& s = *line.shape;
  for (int64_t x = 0; x < s.out_width; x++) {
    qdwconv_point(line, x, kGroup);
    for (int b = 0; b < s.block_count; b++) run_pixel(line, s.blocks[b], x);
  }
}

}  // namespace

const QdwconvKernel qdwconv_avx2 = {kGroup, 2, kVectors, kLanes, kLanes, false, run};

}  // namespace qtool
