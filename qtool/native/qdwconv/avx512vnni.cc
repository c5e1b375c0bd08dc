// One pixel x 64 channels, or 32 where no more are left. Three input vectors of a column are interleaved once and serve
// the three pixels (two with a stride of 2) that see the column. Other kernels interleave four taps at a time.
#include <immintrin.h>

#include "qdwconv/qdwconv.h"

namespace qtool {
namespace {

constexpr int kGroup = 4, kVectors = 4;

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

// The same instructions on 64 and on 32 bytes.
struct Zmm {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int kWords = 16, kLanes = 4;
  INLINE Int load(const void* p) { return _mm512_loadu_si512(p); }
  INLINE Float load_floats(const float* p) { return _mm512_load_ps(p); }
  INLINE void store_first(uint8_t* p, int n, Int a) { _mm512_mask_storeu_epi8(p, ~(__mmask64)0 >> (64 - n), a); }
  INLINE Int load_first(const uint8_t* p, int n) { return _mm512_maskz_loadu_epi8(~(__mmask64)0 >> (64 - n), p); }
  INLINE Int zero() { return _mm512_setzero_si512(); }
  INLINE Int low8(Int a, Int b) { return _mm512_unpacklo_epi8(a, b); }
  INLINE Int high8(Int a, Int b) { return _mm512_unpackhi_epi8(a, b); }
  INLINE Int low16(Int a, Int b) { return _mm512_unpacklo_epi16(a, b); }
  INLINE Int high16(Int a, Int b) { return _mm512_unpackhi_epi16(a, b); }
  INLINE Int all16(int a) { return _mm512_set1_epi16((int16_t)a); }
  INLINE Int all8(int a) { return _mm512_set1_epi8((char)a); }
  INLINE Float all(float a) { return _mm512_set1_ps(a); }
  INLINE Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  INLINE Int to_int(Float a) { return _mm512_cvtps_epi32(a); }
  INLINE Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  INLINE Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  INLINE Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  INLINE Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  INLINE Int words(Int a, Int b) { return _mm512_packs_epi32(a, b); }
  INLINE Int add16(Int a, Int b) { return _mm512_adds_epi16(a, b); }
  INLINE Int bytes(Int a, Int b) { return _mm512_packus_epi16(a, b); }
  INLINE Int min8(Int a, Int b) { return _mm512_min_epu8(a, b); }
  INLINE Int max8(Int a, Int b) { return _mm512_max_epu8(a, b); }
};

struct Ymm {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int kWords = 8, kLanes = 2;
  INLINE Int load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
  INLINE Float load_floats(const float* p) { return _mm256_load_ps(p); }
  INLINE void store_first(uint8_t* p, int n, Int a) { _mm256_mask_storeu_epi8(p, ~(__mmask32)0 >> (32 - n), a); }
  INLINE Int load_first(const uint8_t* p, int n) { return _mm256_maskz_loadu_epi8(~(__mmask32)0 >> (32 - n), p); }
  INLINE Int zero() { return _mm256_setzero_si256(); }
  INLINE Int low8(Int a, Int b) { return _mm256_unpacklo_epi8(a, b); }
  INLINE Int high8(Int a, Int b) { return _mm256_unpackhi_epi8(a, b); }
  INLINE Int low16(Int a, Int b) { return _mm256_unpacklo_epi16(a, b); }
  INLINE Int high16(Int a, Int b) { return _mm256_unpackhi_epi16(a, b); }
  INLINE Int all16(int a) { return _mm256_set1_epi16((int16_t)a); }
  INLINE Int all8(int a) { return _mm256_set1_epi8((char)a); }
  INLINE Float all(float a) { return _mm256_set1_ps(a); }
  INLINE Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  INLINE Int to_int(Float a) { return _mm256_cvtps_epi32(a); }
  INLINE Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  INLINE Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  INLINE Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  INLINE Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  INLINE Int words(Int a, Int b) { return _mm256_packs_epi32(a, b); }
  INLINE Int add16(Int a, Int b) { return _mm256_adds_epi16(a, b); }
  INLINE Int bytes(Int a, Int b) { return _mm256_packus_epi16(a, b); }
  INLINE Int min8(Int a, Int b) { return _mm256_min_epu8(a, b); }
  INLINE Int max8(Int a, Int b) { return _mm256_max_epu8(a, b); }
};

// With the intrinsic, GCC 12 copies and spills the accumulators.
template <class Int>
INLINE void dot(Int& sum, Int a, Int w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
}

// Element (v, lane, i) of the result holds byte (lane, v * 4 + i) of the four inputs, one after another.
template <class V>
struct Taps {
  typename V::Int of[kVectors];
};

template <class V>
INLINE Taps<V> interleave(typename V::Int a, typename V::Int b, typename V::Int c, typename V::Int d) {
  const typename V::Int low_ab = V::low8(a, b), high_ab = V::high8(a, b);
  const typename V::Int low_cd = V::low8(c, d), high_cd = V::high8(c, d);
  return {{V::low16(low_ab, low_cd), V::high16(low_ab, low_cd), V::low16(high_ab, high_cd),
           V::high16(high_ab, high_cd)}};
}

// Adds one group of taps to the sums of P pixels; taps[p * STEP] are those of pixel p.
template <class V, int P, int STEP>
INLINE void accumulate(Taps<V> (&sum)[P], const Taps<V>* taps, const QdwconvBlock& block, int64_t group) {
  const typename V::Int* weight = static_cast<const typename V::Int*>(block.weight) + group * kVectors;
  UNROLL for (int v = 0; v < kVectors; v++) {
    const typename V::Int w = V::load(weight + v);
    UNROLL for (int p = 0; p < P; p++) dot(sum[p].of[v], taps[p * STEP].of[v], w);
  }
}

template <class V, int P>
INLINE void start(const QdwconvBlock& block, Taps<V> (&sum)[P]) {
  UNROLL for (int v = 0; v < kVectors; v++) {
    const typename V::Int from = V::load(block.start + v * V::kWords);
    UNROLL for (int p = 0; p < P; p++) sum[p].of[v] = from;
  }
}

// See rounded() and packed() in qconv/avx512vnni.cc.
template <class V, int P, bool RESIDUAL>
INLINE void finish(const QdwconvLine& line, const QdwconvBlock& block, int64_t x, const Taps<V> (&sum)[P]) {
  const QconvFinish& f = line.shape->finish;
  const int64_t at = x * line.shape->pitch + block.first;
  Taps<V> q[P];
  UNROLL for (int p = 0; p < P && RESIDUAL; p++) {
    const uint8_t* residual = line.residual + at + p * line.shape->pitch;
    q[p] = interleave<V>(V::load_first(residual, block.channels), V::zero(), V::zero(), V::zero());
  }
  UNROLL for (int v = 0; v < kVectors; v++) {
    const typename V::Float bias = V::load_floats(block.bias + v * V::kWords);
    const typename V::Float multiplier = V::load_floats(block.multiplier + v * V::kWords);
    UNROLL for (int p = 0; p < P; p++) {
      typename V::Float r = V::mul(V::add(V::to_float(sum[p].of[v]), bias), multiplier);
      if (RESIDUAL) {
        const typename V::Float other = V::sub(V::to_float(q[p].of[v]), V::all(f.res_zero));
        r = V::add(r, V::mul(other, V::all(f.res_multiplier)));
      }
      if (!f.fits) r = V::min(r, V::all(f.high));
      q[p].of[v] = V::to_int(r);
    }
  }
  UNROLL for (int p = 0; p < P; p++) {
    typename V::Int left = V::words(q[p].of[0], q[p].of[1]), right = V::words(q[p].of[2], q[p].of[3]);
    if (f.out_zero != 0) {
      left = V::add16(left, V::all16(f.out_zero));
      right = V::add16(right, V::all16(f.out_zero));
    }
    typename V::Int bytes = V::bytes(left, right);
    if (f.out_min != 0) bytes = V::max8(bytes, V::all8(f.out_min));
    if (f.out_max != 255) bytes = V::min8(bytes, V::all8(f.out_max));
    V::store_first(line.out + at + p * line.shape->pitch, block.channels, bytes);
  }
}

template <class V>
INLINE Taps<V> column(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  typename V::Int taps[3];
  UNROLL for (int ky = 0; ky < 3; ky++) taps[ky] = V::load(qdwconv_tap(line, line.rows[ky], x) + block.first);
  return interleave<V>(taps[0], taps[1], taps[2], V::zero());
}

// P neighbouring pixels; the first of the columns that they see are those that the pixels before left in `shared`.
template <class V, int STRIDE, int P, bool RESIDUAL>
INLINE void run_neighbours(const QdwconvLine& line, const QdwconvBlock& block, int64_t x, Taps<V> (&shared)[2]) {
  constexpr int kShared = 3 - STRIDE, kCount = (P - 1) * STRIDE + 3;
  const int64_t left = x * STRIDE - line.shape->pad;
  Taps<V> columns[kCount];
  UNROLL for (int i = 0; i < kCount; i++) {
    columns[i] = i < kShared ? shared[i < kShared ? i : 0] : column<V>(line, block, left + i);
  }
  Taps<V> sum[P];
  start<V>(block, sum);
  UNROLL for (int kx = 0; kx < 3; kx++) accumulate<V, P, STRIDE>(sum, columns + kx, block, kx);
  UNROLL for (int i = 0; i < kShared; i++) shared[i] = columns[P * STRIDE + i];
  finish<V, P, RESIDUAL>(line, block, x, sum);
}

template <class V, int STRIDE, bool RESIDUAL>
void run_columns(const QdwconvLine& given, const QdwconvBlock& given_block) {
  // Copies, so that the compiler need not fear that a store of bytes changes them.
  const QdwconvBlock block = given_block;
  const QdwconvShape shape = *given.shape;
  const uint8_t* const rows[3] = {given.rows[0], given.rows[1], given.rows[2]};
  const QdwconvLine line = {&shape, rows, NULL, given.residual, given.out};
  Taps<V> shared[2];
  shared[0] = column<V>(line, block, -line.shape->pad);
  if (STRIDE == 1) shared[1] = column<V>(line, block, 1 - line.shape->pad);
  int64_t x = 0;
  for (; x + 2 <= line.shape->out_width; x += 2) run_neighbours<V, STRIDE, 2, RESIDUAL>(line, block, x, shared);
  if (x < line.shape->out_width) run_neighbours<V, STRIDE, 1, RESIDUAL>(line, block, x, shared);
}

template <class V, bool RESIDUAL>
void run_pixel(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  Taps<V> sum[1];
  start<V>(block, sum);
  for (int g = 0; g < line.shape->groups; g++) {
    const uint8_t* const* p = line.pointers + g * kGroup;
    const typename V::Int a = V::load(p[0] + block.first), b = V::load(p[1] + block.first);
    const typename V::Int c = V::load(p[2] + block.first), d = V::load(p[3] + block.first);
    const Taps<V> taps = interleave<V>(a, b, c, d);
    accumulate<V, 1, 1>(sum, &taps, block, g);
  }
  finish<V, 1, RESIDUAL>(line, block, x, sum);
}

template <class V, bool RESIDUAL>
void run_block(const QdwconvLine& line, const QdwconvBlock& block) {
  if (line.shape->stride == 1) {
    run_columns<V, 1, RESIDUAL>(line, block);
  } else {
    run_columns<V, 2, RESIDUAL>(line, block);
  }
}

template <bool RESIDUAL>
void run_line(const QdwconvLine& line) {
  const QdwconvShape& s = *line.shape;
  const QdwconvBlock* end = s.blocks + s.block_count;
  if (s.by_columns && s.stride <= 2) {
    for (const QdwconvBlock* block = s.blocks; block != end; block++) {
      const bool full = block->lanes == Zmm::kLanes;
      full ? run_block<Zmm, RESIDUAL>(line, *block) : run_block<Ymm, RESIDUAL>(line, *block);
    }
    return;
  }
  for (int64_t x = 0; x < s.out_width; x++) {
    qdwconv_point(line, x, kGroup);
    for (const QdwconvBlock* block = s.blocks; block != end; block++) {
      const bool full = block->lanes == Zmm::kLanes;
      full ? run_pixel<Zmm, RESIDUAL>(line, *block, x) : run_pixel<Ymm, RESIDUAL>(line, *block, x);
    }
  }
}

void run(const QdwconvLine& line) { line.residual != NULL ? run_line<true>(line) : run_line<false>(line); }

}  // namespace

const QdwconvKernel qdwconv_avx512vnni = {kGroup, 1, kVectors, Ymm::kLanes, Zmm::kLanes, true, run};

}  // namespace qtool
