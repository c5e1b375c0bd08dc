// 16 channels of one pixel or, of 3x3 kernels, of two. Exact: bytes become 16-bit numbers, those of two taps are
// interleaved and meet weights packed as int16 in VPMADDWD. Of a 3x3 kernel the upper two taps of a column are a pair,
// which serves three pixels (two with a stride of 2), and the lowest ones of two columns.
#include "qconv/finish_avx2.h"
#include "qdwconv/qdwconv.h"

namespace qtool {
namespace {

constexpr int kGroup = 2, kVectors = 2, kLanesOf128 = 2, kChannels = kVectors * kLanes;

// Two vectors of words interleaved, lane by lane.
struct Pairs {
  __m256i of[kVectors];
};

INLINE __m256i load_words(const uint8_t* bytes) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)bytes)); }

INLINE Pairs interleave(__m256i a, __m256i b) { return {{_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)}}; }

INLINE void start(const QdwconvBlock& block, Pairs& sum) {
  UNROLL for (int v = 0; v < kVectors; v++) sum.of[v] = _mm256_load_si256((const __m256i*)(block.start + v * kLanes));
}

INLINE __m256i load_weight(const QdwconvBlock& block, int64_t group, int v) {
  return _mm256_load_si256(static_cast<const __m256i*>(block.weight) + group * kVectors + v);
}

// As assembly: gcc 12 multiplies all first and spills.
INLINE void dot(__m256i& sum, __m256i pairs, __m256i& other_sum, __m256i other_pairs, __m256i w) {
  __m256i products, other;
  __asm__("vpmaddwd %6, %4, %2\n\tvpmaddwd %6, %5, %3\n\tvpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
          : "+x"(sum), "+x"(other_sum), "=&x"(products), "=&x"(other)
          : "x"(pairs), "x"(other_pairs), "x"(w));
}

INLINE void accumulate(Pairs& sum, const Pairs& pairs, const QdwconvBlock& block, int64_t group) {
  UNROLL for (int v = 0; v < kVectors; v++) {
    sum.of[v] = _mm256_add_epi32(sum.of[v], _mm256_madd_epi16(pairs.of[v], load_weight(block, group, v)));
  }
}

// For two pixels; the pairs of the second lie `step` behind those of the first.
INLINE void accumulate(Pairs (&sum)[2], const Pairs* pairs, int step, const QdwconvBlock& block, int64_t group) {
  UNROLL for (int v = 0; v < kVectors; v++) {
    dot(sum[0].of[v], pairs[0].of[v], sum[1].of[v], pairs[step].of[v], load_weight(block, group, v));
  }
}

INLINE void accumulate(Pairs (&sum)[1], const Pairs* pairs, int, const QdwconvBlock& block, int64_t group) {
  accumulate(sum[0], pairs[0], block, group);
}

// 16 results as 16-bit numbers in the order of their channels.
template <bool RESIDUAL>
INLINE __m256i finished_words(const QdwconvLine& line, const QdwconvBlock& block, int64_t at, const Pairs& sum) {
  const QconvFinish& f = line.shape->finish;
  Pairs residual = {};
  if (RESIDUAL) {
    uint8_t bytes[kChannels] = {};
    memcpy(bytes, line.residual + at, (size_t)block.channels);
    residual = interleave(load_words(bytes), _mm256_setzero_si256());
  }
  __m256i q[kVectors];
  UNROLL for (int v = 0; v < kVectors; v++) {
    __m256 r = scaled(sum.of[v], block.bias + v * kLanes, block.multiplier + v * kLanes);
    if (RESIDUAL) r = with_residual(f, r, residual.of[v]);
    q[v] = to_integers(f, f.fits, r);
  }
  return _mm256_packs_epi32(q[0], q[1]);
}

// The words of P neighbours to bytes.
template <int P>
INLINE void store(const QdwconvLine& line, const QdwconvBlock& block, int64_t at, const __m256i (&words)[P]) {
  const __m256i bytes = _mm256_permute4x64_epi64(to_bytes(line.shape->finish, words[0], words[P - 1]), 0xd8);
  const __m128i first = _mm256_castsi256_si128(bytes), second = _mm256_extracti128_si256(bytes, 1);
  uint8_t *out = line.out + at, *next = out + line.shape->channels;
  if (block.channels == kChannels) {
    _mm_storeu_si128((__m128i*)out, first);
    if (P == 2) _mm_storeu_si128((__m128i*)next, second);
  } else {
    store_part(out, first, block.channels);
    if (P == 2) store_part(next, second, block.channels);
  }
}

// Three rows of the input, from the block's first channel on.
struct Rows {
  const uint8_t* begin[3];
};

template <bool INSIDE>
INLINE __m256i load_tap(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int ky, int64_t x) {
  const bool inside = INSIDE || (uint64_t)x < (uint64_t)line.shape->in_width;
  return load_words(inside ? rows.begin[ky] + x * line.shape->channels : line.shape->outside + block.first);
}

template <bool INSIDE>
INLINE Pairs upper_pair(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int64_t x) {
  return interleave(load_tap<INSIDE>(line, block, rows, 0, x), load_tap<INSIDE>(line, block, rows, 1, x));
}

// What pixels share with those after them: of their last 3 - stride columns the upper pairs, of the last two columns the
// lowest pair (with a stride of 1), of the last column the lowest tap.
struct Shared {
  Pairs upper[2], lowest;
  __m256i last;
};

template <int STRIDE, int P, bool RESIDUAL, bool INSIDE>
INLINE void run_neighbours(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int64_t x,
                           Shared& shared) {
  constexpr int kShared = 3 - STRIDE, kCount = (P - 1) * STRIDE + 3;
  const int64_t left = x * STRIDE - line.shape->pad;
  Pairs sum[P];
  UNROLL for (int p = 0; p < P; p++) start(block, sum[p]);
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
  const int64_t at = x * line.shape->channels + block.first;
  __m256i words[P];
  UNROLL for (int p = 0; p < P; p++) {
    words[p] = finished_words<RESIDUAL>(line, block, at + p * line.shape->channels, sum[p]);
  }
  store<P>(line, block, at, words);
}

template <int STRIDE, bool RESIDUAL>
void run_columns(const QdwconvLine& given, const QdwconvBlock& given_block) {
  // Copies, so that the compiler need not fear that a store of bytes changes them.
  const QdwconvBlock block = given_block;
  const QdwconvShape shape = *given.shape;
  const QdwconvLine line = {&shape, NULL, NULL, given.residual, given.out};
  Rows rows;
  UNROLL for (int ky = 0; ky < 3; ky++) {
    rows.begin[ky] = (given.rows[ky] != NULL ? given.rows[ky] : shape.outside) + block.first;
  }
  Shared shared = {};
  UNROLL for (int i = 0; i < 3 - STRIDE; i++) {
    const __m256i tap = load_tap<false>(line, block, rows, 2, i - shape.pad);
    shared.upper[i] = upper_pair<false>(line, block, rows, i - shape.pad);
    shared.lowest = interleave(shared.last, tap);
    shared.last = tap;
  }
  int64_t x = 0;
  if (shape.pad > STRIDE) {  // more than the first pixel sees what is left of the picture
    for (; x + 2 <= shape.out_width; x += 2) run_neighbours<STRIDE, 2, RESIDUAL, false>(line, block, rows, x, shared);
  }
  for (; (x + 1) * STRIDE - shape.pad + 3 <= shape.in_width && x + 2 <= shape.out_width; x += 2) {
    run_neighbours<STRIDE, 2, RESIDUAL, true>(line, block, rows, x, shared);
  }
  for (; x < shape.out_width; x++) run_neighbours<STRIDE, 1, RESIDUAL, false>(line, block, rows, x, shared);
}

template <bool RESIDUAL>
void run_pixel(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  const int64_t at = x * line.shape->channels + block.first;
  Pairs sum;
  start(block, sum);
  for (int g = 0; g < line.shape->groups; g++) {
    const uint8_t* const* p = line.pointers + g * kGroup;
    accumulate(sum, interleave(load_words(p[0] + block.first), load_words(p[1] + block.first)), block, g);
  }
  const __m256i words[1] = {finished_words<RESIDUAL>(line, block, at, sum)};
  store<1>(line, block, at, words);
}

template <bool RESIDUAL>
void run_line(const QdwconvLine& line) {
  const QdwconvShape& s = *line.shape;
  const QdwconvBlock* end = s.blocks + s.block_count;
  if (s.by_columns && s.stride <= 2) {
    for (const QdwconvBlock* block = s.blocks; block != end; block++) {
      s.stride == 1 ? run_columns<1, RESIDUAL>(line, *block) : run_columns<2, RESIDUAL>(line, *block);
    }
    return;
  }
  for (int64_t x = 0; x < s.out_width; x++) {
    qdwconv_point(line, x, kGroup);
    for (const QdwconvBlock* block = s.blocks; block != end; block++) run_pixel<RESIDUAL>(line, *block, x);
  }
}

void run(const QdwconvLine& line) { line.residual != NULL ? run_line<true>(line) : run_line<false>(line); }

}  // namespace

const QdwconvKernel qdwconv_avx2 = {kGroup, 2, kVectors, kLanesOf128, kLanesOf128, true, run};

}  // namespace qtool
