// VPDPBUSD over four taps, whose bytes are interleaved. Of a 3x3 kernel those of a column are interleaved once and serve
// the three pixels (two with a stride of 2) that see it.
#include "core/avxvnni.h"
#include "qdwconv/avx2.h"

namespace qtool {
namespace {

using Fours = Vectors;

// The bytes of 8 channels in the lower half of each lane, so that one unpacking sees all 16. Reads 24.
INLINE __m256i load_spread(const uint8_t* bytes) {
  const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)bytes));
  return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i*)(bytes + kLanes)), 1);
}

// Of every channel the bytes of two taps as a word.
INLINE __m256i two_taps(const uint8_t* first, const uint8_t* second) {
  return _mm256_unpacklo_epi8(load_spread(first), load_spread(second));
}

template <bool INSIDE>
INLINE Fours column(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int64_t x) {
  const uint8_t* taps[3];
  UNROLL for (int ky = 0; ky < 3; ky++) taps[ky] = tap_at<INSIDE>(line, block, rows, ky, x);
  return interleave(two_taps(taps[0], taps[1]), load_words(taps[2]));
}

// For P pixels; the taps of one lie `step` behind those of the one before.
template <int P>
INLINE void accumulate(Vectors (&sum)[P], const Fours* taps, int step, const QdwconvBlock& block, int64_t group) {
  UNROLL for (int v = 0; v < kVectors; v++) {
    const __m256i w = load_weight(block, group, v);
    UNROLL for (int p = 0; p < P; p++) add_products8(sum[p].of[v], taps[p * step].of[v], w);
  }
}

struct ByteProducts {
  static constexpr int kGroup = 4;

  struct Shared {
    Fours columns[2];  // the last 3 - stride
  };

  template <int STRIDE>
  INLINE void enter(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, Shared& shared) {
    UNROLL for (int i = 0; i < 3 - STRIDE; i++) {
      shared.columns[i] = column<false>(line, block, rows, i - line.shape->pad);
    }
  }

  template <int STRIDE, bool INSIDE, int P>
  INLINE void add(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int64_t left, Shared& shared,
                  Vectors (&sum)[P]) {
    constexpr int kShared = 3 - STRIDE, kCount = (P - 1) * STRIDE + 3;
    Fours columns[kCount];
    UNROLL for (int i = 0; i < kCount; i++) {
      columns[i] = i < kShared ? shared.columns[i < kShared ? i : 0] : column<INSIDE>(line, block, rows, left + i);
    }
    UNROLL for (int kx = 0; kx < 3; kx++) accumulate(sum, columns + kx, STRIDE, block, kx);
    UNROLL for (int i = 0; i < kShared; i++) shared.columns[i] = columns[P * STRIDE + i];
  }

  INLINE void add_group(const QdwconvBlock& block, const uint8_t* const* taps, int64_t group, Vectors& sum) {
    const uint8_t* at[kGroup];
    UNROLL for (int i = 0; i < kGroup; i++) at[i] = taps[i] + block.first;
    Vectors one[1] = {sum};
    const Fours fours = interleave(two_taps(at[0], at[1]), two_taps(at[2], at[3]));
    accumulate(one, &fours, 1, block, group);
    sum = one[0];
  }
};

}  // namespace

const QdwconvKernel qdwconv_avxvnni = {
    ByteProducts::kGroup, 1, kVectors, kLanesOf128, kLanesOf128, true, run_all<ByteProducts>};

}  // namespace qtool
