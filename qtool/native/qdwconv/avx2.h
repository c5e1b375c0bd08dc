// All but the products of depthwise convolutions, for the instruction set files with registers of 32 bytes: 16 channels
// of one pixel or, of 3x3 kernels, of two. `Products`, a struct of such a file, has
//
//   kGroup                                                taps whose products are added at once
//   Shared                                                what the pixels of a line share with those after them
//   enter<STRIDE>(line, block, rows, shared)              fills it for the first pixel
//   add<STRIDE, INSIDE>(line, block, rows, left, shared, sum)  a 3x3 kernel's products, of P pixels; column `left` is the
//                                                         first that they see
//   add_group(block, taps, group, sum)                    the products of a group of taps, of one pixel
#pragma once

#include "qconv/finish_avx2.h"
#include "qdwconv/qdwconv.h"

namespace qtool {
namespace {

constexpr int kVectors = 2, kLanesOf128 = 2, kChannels = kVectors * kLanes;

// 16 channels, of 32 bits each in the order of qdwconv.h.
struct Vectors {
  __m256i of[kVectors];
};

// Three rows of the input, from the block's first channel on.
struct Rows {
  const uint8_t* begin[3];
};

INLINE __m256i load_words(const uint8_t* bytes) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)bytes)); }

INLINE Vectors interleave(__m256i a, __m256i b) { return {{_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)}}; }

INLINE void start(const QdwconvBlock& block, Vectors& sum) {
  UNROLL for (int v = 0; v < kVectors; v++) sum.of[v] = _mm256_load_si256((const __m256i*)(block.start + v * kLanes));
}

INLINE __m256i load_weight(const QdwconvBlock& block, int64_t group, int v) {
  return _mm256_load_si256(static_cast<const __m256i*>(block.weight) + group * kVectors + v);
}

// Where the taps of a column are.
template <bool INSIDE>
INLINE const uint8_t* tap_at(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int ky, int64_t x) {
  const bool inside = INSIDE || (uint64_t)x < (uint64_t)line.shape->in_width;
  return inside ? rows.begin[ky] + x * line.shape->channels : line.shape->outside + block.first;
}

// 16 results as 16-bit numbers in the order of their channels.
template <bool RESIDUAL>
INLINE __m256i finished_words(const QdwconvLine& line, const QdwconvBlock& block, int64_t at, const Vectors& sum) {
  const QconvFinish& f = line.shape->finish;
  Vectors residual = {};
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
  uint8_t *out = line.out + at, *next = out + line.shape->pitch;
  if (block.channels == kChannels) {
    _mm_storeu_si128((__m128i*)out, first);
    if (P == 2) _mm_storeu_si128((__m128i*)next, second);
  } else {
    store_part(out, first, block.channels);
    if (P == 2) store_part(next, second, block.channels);
  }
}

template <class Products, int STRIDE, int P, bool RESIDUAL, bool INSIDE>
INLINE void run_neighbours(const QdwconvLine& line, const QdwconvBlock& block, const Rows& rows, int64_t x,
                           typename Products::Shared& shared) {
  Vectors sum[P];
  UNROLL for (int p = 0; p < P; p++) start(block, sum[p]);
  Products::template add<STRIDE, INSIDE>(line, block, rows, x * STRIDE - line.shape->pad, shared, sum);
  const int64_t at = x * line.shape->pitch + block.first;
  __m256i words[P];
  UNROLL for (int p = 0; p < P; p++) {
    words[p] = finished_words<RESIDUAL>(line, block, at + p * line.shape->pitch, sum[p]);
  }
  store<P>(line, block, at, words);
}

template <class Products, int STRIDE, bool RESIDUAL>
void run_columns(const QdwconvLine& given, const QdwconvBlock& given_block) {
  // Copies, so that the compiler need not fear that a store of bytes changes them.
  const QdwconvBlock block = given_block;
  const QdwconvShape shape = *given.shape;
  const QdwconvLine line = {&shape, NULL, NULL, given.residual, given.out};
  Rows rows;
  UNROLL for (int ky = 0; ky < 3; ky++) {
    rows.begin[ky] = (given.rows[ky] != NULL ? given.rows[ky] : shape.outside) + block.first;
  }
  typename Products::Shared shared = {};
  Products::template enter<STRIDE>(line, block, rows, shared);
  int64_t x = 0;
  if (shape.pad > STRIDE) {  // more than the first pixel sees what is left of the picture
    for (; x + 2 <= shape.out_width; x += 2) {
      run_neighbours<Products, STRIDE, 2, RESIDUAL, false>(line, block, rows, x, shared);
    }
  }
  for (; (x + 1) * STRIDE - shape.pad + 3 <= shape.in_width && x + 2 <= shape.out_width; x += 2) {
    run_neighbours<Products, STRIDE, 2, RESIDUAL, true>(line, block, rows, x, shared);
  }
  for (; x < shape.out_width; x++) run_neighbours<Products, STRIDE, 1, RESIDUAL, false>(line, block, rows, x, shared);
}

template <class Products, bool RESIDUAL>
void run_pixel(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  const int64_t at = x * line.shape->pitch + block.first;
  Vectors sum;
  start(block, sum);
  for (int g = 0; g < line.shape->groups; g++) {
    Products::add_group(block, line.pointers + g * Products::kGroup, g, sum);
  }
  const __m256i words[1] = {finished_words<RESIDUAL>(line, block, at, sum)};
  store<1>(line, block, at, words);
}

template <class Products, bool RESIDUAL>
void run_line(const QdwconvLine& line) {
  const QdwconvShape& s = *line.shape;
  const QdwconvBlock* end = s.blocks + s.block_count;
  if (s.by_columns && s.stride <= 2) {
    for (const QdwconvBlock* block = s.blocks; block != end; block++) {
      s.stride == 1 ? run_columns<Products, 1, RESIDUAL>(line, *block) : run_columns<Products, 2, RESIDUAL>(line, *block);
    }
    return;
  }
  for (int64_t x = 0; x < s.out_width; x++) {
    qdwconv_point(line, x, Products::kGroup);
    for (const QdwconvBlock* block = s.blocks; block != end; block++) run_pixel<Products, RESIDUAL>(line, *block, x);
  }
}

template <class Products>
void run_all(const QdwconvLine& line) {
  line.residual != NULL ? run_line<Products, true>(line) : run_line<Products, false>(line);
}

}  // namespace
}  // namespace qtool
