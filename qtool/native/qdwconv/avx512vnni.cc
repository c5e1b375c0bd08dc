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
  INLINE void store(uint8_t* p, int count, Int a) { _mm512_mask_storeu_epi8(p, ~(__mmask64)0 >> (64 - count), a); }
  INLINE Int load_bytes(const uint8_t* p, int count) { return _mm512_maskz_loadu_epi8(~(__mmask64)0 >> (64 - count), p); }
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
  INLINE Int words(Int a, Int b, Int zero) { return _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero); }
  INLINE Int bytes(Int a, Int b, Int low) { return _mm512_max_epu8(_mm512_packus_epi16(a, b), low); }
};

struct Ymm {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int kWords = 8, kLanes = 2;
  INLINE Int load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
  INLINE Float load_floats(const float* p) { return _mm256_load_ps(p); }
  INLINE void store(uint8_t* p, int count, Int a) { _mm256_mask_storeu_epi8(p, ~(__mmask32)0 >> (32 - count), a); }
  INLINE Int load_bytes(const uint8_t* p, int count) { return _mm256_maskz_loadu_epi8(~(__mmask32)0 >> (32 - count), p); }
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
  INLINE Int words(Int a, Int b, Int zero) { return _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero); }
  INLINE Int bytes(Int a, Int b, Int low) { return _mm256_max_epu8(_mm256_packus_epi16(a, b), low); }
};

template <class V>
INLINE void dot(typename V::Int& sum, typename V::Int a, const typename V::Int* w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "m"(*w));
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

template <class V>
INLINE void accumulate(Taps<V>& sum, const Taps<V>& taps, const QdwconvBlock& block, int64_t group) {
  const typename V::Int* weight = static_cast<const typename V::Int*>(block.weight) + group * kVectors;
  UNROLL for (int v = 0; v < kVectors; v++) dot<V>(sum.of[v], taps.of[v], weight + v);
}

template <class V>
INLINE Taps<V> start(const QdwconvBlock& block) {
  Taps<V> sum;
  UNROLL for (int v = 0; v < kVectors; v++) sum.of[v] = V::load(block.start + v * V::kWords);
  return sum;
}

template <class V, bool RESIDUAL>
INLINE void finish(const QdwconvLine& line, const QdwconvBlock& block, int64_t x, const Taps<V>& sum) {
  const QconvFinish& f = line.shape->finish;
  const int64_t at = x * line.shape->channels + block.first;
  Taps<V> residual;
  if (RESIDUAL) {
    residual = interleave<V>(V::load_bytes(line.residual + at, block.channels), V::zero(), V::zero(), V::zero());
  }
  typename V::Int q[kVectors];
  UNROLL for (int v = 0; v < kVectors; v++) {
    typename V::Float r = V::add(V::to_float(sum.of[v]), V::load_floats(block.bias + v * V::kWords));
    r = V::mul(r, V::load_floats(block.multiplier + v * V::kWords));
    if (RESIDUAL) {
      const typename V::Float other = V::sub(V::to_float(residual.of[v]), V::all(f.res_zero));
      r = V::add(r, V::mul(other, V::all(f.res_multiplier)));
    }
    q[v] = V::to_int(V::min(r, V::all(f.high)));  // see qconv/avx512vnni.cc
  }
  const typename V::Int zero = V::all16(f.out_zero);
  const typename V::Int left = V::words(q[0], q[1], zero), right = V::words(q[2], q[3], zero);
  V::store(line.out + at, block.channels, V::bytes(left, right, V::all8(f.out_min)));
}

template <class V>
INLINE Taps<V> column(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  const uint8_t* const* rows = line.rows;
  const typename V::Int a = V::load(qdwconv_tap(line, rows[0], x) + block.first);
  const typename V::Int b = V::load(qdwconv_tap(line, rows[1], x) + block.first);
  const typename V::Int c = V::load(qdwconv_tap(line, rows[2], x) + block.first);
  return interleave<V>(a, b, c, V::zero());
}

template <class V, int STRIDE, bool RESIDUAL>
void run_columns(const QdwconvLine& line, const QdwconvBlock& block) {
  int64_t next = -line.shape->pad;
  Taps<V> first = column<V>(line, block, next++), second;
  if (STRIDE == 1) second = column<V>(line, block, next++);
  for (int64_t x = 0; x < line.shape->out_width; x++) {
    if (STRIDE == 2) second = column<V>(line, block, next++);
    const Taps<V> third = column<V>(line, block, next++);
    Taps<V> sum = start<V>(block);
    accumulate<V>(sum, first, block, 0);
    accumulate<V>(sum, second, block, 1);
    accumulate<V>(sum, third, block, 2);
    finish<V, RESIDUAL>(line, block, x, sum);
    first = STRIDE == 1 ? second : third;
    second = third;
  }
}

template <class V, bool RESIDUAL>
void run_pixel(const QdwconvLine& line, const QdwconvBlock& block, int64_t x) {
  Taps<V> sum = start<V>(block);
  for (int g = 0; g < line.shape->groups; g++) {
    const uint8_t* const* p = line.pointers + g * kGroup;
    const typename V::Int a = V::load(p[0] + block.first), b = V::load(p[1] + block.first);
    const typename V::Int c = V::load(p[2] + block.first), d = V::load(p[3] + block.first);
    accumulate<V>(sum, interleave<V>(a, b, c, d), block, g);
  }
  finish<V, RESIDUAL>(line, block, x, sum);
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
  if (s.by_columns && s.stride <= 2) {
    for (const QdwconvBlock* block = s.blocks; block != s.blocks + s.block_count; block++) {
      block->lanes == Zmm::kLanes ? run_block<Zmm, RESIDUAL>(line, *block) : run_block<Ymm, RESIDUAL>(line, *block);
    }
    return;
  }
  for (int64_t x = 0; x < s.out_width; x++) {
    qdwconv_point(line, x, kGroup);
    for (const QdwconvBlock* block = s.blocks; block != s.blocks + s.block_count; block++) {
      block->lanes == Zmm::kLanes ? run_pixel<Zmm, RESIDUAL>(line, *block, x) : run_pixel<Ymm, RESIDUAL>(line, *block, x);
    }
  }
}

void run(const QdwconvLine& line) { line.residual != NULL ? run_line<true>(line) : run_line<false>(line); }

}  // namespace

const QdwconvKernel qdwconv_avx512vnni = {kGroup, 1, kVectors, Ymm::kLanes, Zmm::kLanes, true, run};

}  // namespace qtool
