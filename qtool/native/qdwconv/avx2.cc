// Exact: bytes become 16-bit numbers, those of two taps are interleaved and meet weights packed as int16 in VPMADDWD. Of
// a 3x3 kernel the upper two taps of a column are a pair, which serves three pixels (two with a stride of 2), and the
// lowest ones of two columns.
#include "qdwconv/avx2.h"

namespace qtool {
namespace {

using Pairs = Vectors;

// As assembly: gcc 12 multiplies all first and spills.
INLINE void dot(__m256i& sum, __m256i pairs, __m256i& other_sum, __m256i other_pairs, __m256i w) {
  __m256i products, other;
  __asm__("vpmaddwd %6, %4, %2\n\tvpmaddwd %6, %5, %3\n\tvpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
          : "+x"(sum), "+x"(other_sum), "=&x"(products), "=&x"(other)
          : "x"(pairs), "x"(other_pairs), "x"(w));
}

INLINE void accumulate(Vectors& sum, const Pairs& pairs, const QdwconvBlock& block, int64_t group) {
  UNROLL for (int v = 0; v < kVectors; v++) {
    sum.of[v] = _mm256_add_epi32(sum.of[v], _mm256_madd_epi16(pairs.of[v], load_weight(block, group, v)));
  }
}

// For two pixels; the pairs of the second lie `step` behind those of the first.
INLINE void accumulate(Vectors (&sum)[2], const Pairs* pairs, int step, const QdwconvBlock& block, int64_t group) {
  UNROLL for (int v = 0; v < kVectors; v++) {
    dot(sum[0].of[v], pairs[0].of[v], sum[1].of[v], pairs[step].of[v], load_weight(block, group, v));
  }
}

INLINE void accumulate(Vectors (&sum)[1], const Pairs* pairs, int, const QdwconvBlock& block, int64_t group) {
  accumulate(sum[0], pairs[0], block, group);
}

template <bool INSIDE>
INLINE __m256i load_tap(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int ky, int64_t x) {
  return load_words(tap_at<INSIDE>(line, block, rows, ky, x));
}

template <bool INSIDE>
INLINE Pairs upper_pair(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int64_t x) {
  return interleave(load_tap<INSIDE>(line, block, rows, 0, x), load_tap<INSIDE>(line, block, rows, 1, x));
}

struct PairProducts {
  static constexpr int kGroup = 2;

  // Of the last 3 - stride columns the upper pairs, of the last two columns the lowest pair (with a stride of 1), of the
  // last column the lowest tap.
  struct Shared {
    Pairs upper[2], lowest;
    __m256i last;
  };

  template <int STRIDE>
  INLINE void enter(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, Shared& shared) {
    const int64_t pad = line.shape->pad;
    UNROLL for (int i = 0; i < 3 - STRIDE; i++) {
      const __m256i tap = load_tap<false>(line, block, rows, 2, i - pad);
      shared.upper[i] = upper_pair<false>(line, block, rows, i - pad);
      shared.lowest = interleave(shared.last, tap);
      shared.last = tap;
    }
  }

  template <int STRIDE, bool INSIDE, int P>
  INLINE void add(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int64_t left, Shared& shared,
                  Vectors (&sum)[P]) {
    constexpr int kShared = 3 - STRIDE, kCount = (P - 1) * STRIDE + 3;
    Pairs lowest[kCount - 1];  // [i] of columns i and i + 1
    if (STRIDE == 1) lowest[0] = shared.lowest;
    UNROLL for (int i = kShared; i < kCount; i++) {
      const __m256i tap = load_tap<INSIDE>(line, block, rows, 2, left + i);
      lowest[i - 1] = interleave(shared.last, tap);
      shared.last = tap;
    }
    UNROLL for (int i = 0; i < 2; i++) accumulate(sum, lowest + i, STRIDE, block, 3 + i);
    if (STRIDE == 1) shared.lowest = lowest[P];
    Pairs upper[kCount];
    UNROLL for (int i = 0; i < kCount; i++) {
      upper[i] = i < kShared ? shared.upper[i < kShared ? i : 0] : upper_pair<INSIDE>(line, block, rows, left + i);
    }
    UNROLL for (int kx = 0; kx < 3; kx++) accumulate(sum, upper + kx, STRIDE, block, kx);
    UNROLL for (int i = 0; i < kShared; i++) shared.upper[i] = upper[P * STRIDE + i];
  }

  INLINE void add_group(const QdwconvBlock& block, const uint8_t* const* taps, int64_t group, Vectors& sum) {
    accumulate(sum, interleave(load_words(taps[0] + block.first), load_words(taps[1] + block.first)), block, group);
  }
};

}  // namespace

const QdwconvKernel qdwconv_avx2 = {
    PairProducts::kGroup, 2, kVectors, kLanesOf128, kLanesOf128, true, run_all<PairProducts>};

}  // namespace qtool
