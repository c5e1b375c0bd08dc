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

INLINE void accumulate(Pairs& sum, const Pairs& pairs, const QdwconvBlock& block, int64_t group) {
  const __m256i* weight = static_cast<const __m256i*>(block.weight) + group * kVectors;
  UNROLL for (int v = 0; v < kVectors; v++) {
    sum.of[v] = _mm256_add_epi32(sum.of[v], _mm256_madd_epi16(pairs.of[v], weight[v]));
  }
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
    q[v] = to_integers(f, r);
  }
  return _mm256_packs_epi32(q[0], q[1]);
}

template <int P, bool RESIDUAL>
INLINE void finish(const QdwconvLine& line, const QdwconvBlock& block, int64_t x, const Pairs (&sum)[P]) {
  const int64_t at = x * line.shape->channels + block.first, next = at + line.shape->channels;
  const __m256i first = finished_words<RESIDUAL>(line, block, at, sum[0]);
  const __m256i second = P == 1 ? first : finished_words<RESIDUAL>(line, block, next, sum[P - 1]);
  const __m256i bytes = _mm256_permute4x64_epi64(to_bytes(line.shape->finish, first, second), 0xd8);
  const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
  if (block.channels == kChannels) {
    _mm_storeu_si128((__m128i*)(line.out + at), low);
    if (P == 2) _mm_storeu_si128((__m128i*)(line.out + next), high);
  } else {
    store_part(line.out + at, low, block.channels);
    if (P == 2) store_part(line.out + next, high, block.channels);
  }
}

// What pixels share with those after them: of their last 3 - stride columns the upper pairs, of the last two columns the
// lowest pair (that of a stride of 1), of the last column the lowest tap.
struct Shared {
  Pairs upper[2], lowest;
  __m256i last;
};

INLINE __m256i load_tap(const QdwconvLine& line, const QdwconvBlock& block, int ky, int64_t x) {
  return load_words(qdwconv_tap(line, line.rows[ky], x) + block.first);
}

INLINE Pairs upper_pair(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  return interleave(load_tap(line, block, 0, x), load_tap(line, block, 1, x));
}

template <int STRIDE, int P, bool RESIDUAL>
INLINE void run_neighbours(const QdwconvLine& line, const QdwconvBlock& block, int64_t x, Shared& shared) {
  constexpr int kShared = 3 - STRIDE, kCount = (P - 1) * STRIDE + 3;
  const int64_t left = x * STRIDE - line.shape->pad;
  Pairs upper[kCount], lowest[kCount - 1];  // lowest[i] of columns i and i + 1
  UNROLL for (int i = 0; i < kShared; i++) upper[i] = shared.upper[i];
  if (STRIDE == 1) lowest[0] = shared.lowest;
  __m256i last = shared.last;
  UNROLL for (int i = kShared; i < kCount; i++) {
    upper[i] = upper_pair(line, block, left + i);
    const __m256i tap = load_tap(line, block, 2, left + i);
    lowest[i - 1] = interleave(last, tap);
    last = tap;
  }
  Pairs sum[P];
  UNROLL for (int p = 0; p < P; p++) {
    start(block, sum[p]);
    UNROLL for (int kx = 0; kx < 3; kx++) accumulate(sum[p], upper[p * STRIDE + kx], block, kx);
    UNROLL for (int i = 0; i < 2; i++) accumulate(sum[p], lowest[p * STRIDE + i], block, 3 + i);
  }
  UNROLL for (int i = 0; i < kShared; i++) shared.upper[i] = upper[P * STRIDE + i];
  if (STRIDE == 1) shared.lowest = lowest[P];
  shared.last = last;
  finish<P, RESIDUAL>(line, block, x, sum);
}

template <int STRIDE, bool RESIDUAL>
void run_columns(const QdwconvLine& given, const QdwconvBlock& given_block) {
  // Copies, so that the compiler need not fear that a store of bytes changes them.
  const QdwconvBlock block = given_block;
  const QdwconvShape shape = *given.shape;
  const uint8_t* const rows[3] = {given.rows[0], given.rows[1], given.rows[2]};
  const QdwconvLine line = {&shape, rows, NULL, given.residual, given.out};
  Shared shared = {};
  shared.upper[0] = upper_pair(line, block, -shape.pad);
  shared.last = load_tap(line, block, 2, -shape.pad);
  if (STRIDE == 1) {
    const __m256i tap = load_tap(line, block, 2, 1 - shape.pad);
    shared.upper[1] = upper_pair(line, block, 1 - shape.pad);
    shared.lowest = interleave(shared.last, tap);
    shared.last = tap;
  }
  int64_t x = 0;
  for (; x + 2 <= shape.out_width; x += 2) run_neighbours<STRIDE, 2, RESIDUAL>(line, block, x, shared);
  if (x < shape.out_width) run_neighbours<STRIDE, 1, RESIDUAL>(line, block, x, shared);
}

template <bool RESIDUAL>
void run_pixel(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  Pairs sum[1];
  start(block, sum[0]);
  for (int g = 0; g < line.shape->groups; g++) {
    const uint8_t* const* p = line.pointers + g * kGroup;
    accumulate(sum[0], interleave(load_words(p[0] + block.first), load_words(p[1] + block.first)), block, g);
  }
  finish<1, RESIDUAL>(line, block, x, sum);
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
