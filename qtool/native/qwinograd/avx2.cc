// Blocks of 6 tiles x 16 channels of M: 12 accumulators of VPMADDWD over pairs of input channels. Transforms run over
// 16 input channels in int16 and 8 output channels in int32, along columns first and then along rows.
#include <immintrin.h>

#include "qconv/finish_avx2.h"
#include "qwinograd/qwinograd.h"

namespace qtool {
namespace {

constexpr int kRows = 6, kColumns = kQwinogradColumns, kPair = 2 * kColumns;

INLINE __m256i add16(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
INLINE __m256i sub16(__m256i a, __m256i b) { return _mm256_sub_epi16(a, b); }
INLINE __m256i add32(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
INLINE __m256i sub32(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }

template <int kSize>
struct Winograd;

template <>
struct Winograd<2> {
  static constexpr int kShift = 2;

  INLINE void input(const __m256i (&d)[4], __m256i (&t)[4]) {
    t[0] = sub16(d[0], d[2]);
    t[1] = add16(d[1], d[2]);
    t[2] = sub16(d[2], d[1]);
    t[3] = sub16(d[1], d[3]);
  }

  INLINE void weight(const __m256i (&g)[3], __m256i (&t)[4]) {
    const __m256i ends = add16(g[0], g[2]);
    t[0] = add16(g[0], g[0]);
    t[1] = add16(ends, g[1]);
    t[2] = sub16(ends, g[1]);
    t[3] = add16(g[2], g[2]);
  }

  INLINE void output(const __m256i (&m)[4], __m256i (&y)[2]) {
    y[0] = add32(add32(m[0], m[1]), m[2]);
    y[1] = sub32(sub32(m[1], m[2]), m[3]);
  }

  INLINE __m256i without_odd(__m256i y) { return y; }
};

template <>
struct Winograd<4> {
  static constexpr int kShift = 6;

  INLINE void input(const __m256i (&d)[6], __m256i (&t)[6]) {
    const __m256i even = sub16(d[4], _mm256_slli_epi16(d[2], 2)), odd = sub16(d[3], _mm256_slli_epi16(d[1], 2));
    const __m256i near = sub16(d[4], d[2]), twice = _mm256_slli_epi16(sub16(d[3], d[1]), 1);
    t[0] = add16(_mm256_slli_epi16(d[0], 2), sub16(even, d[2]));
    t[1] = add16(even, odd);
    t[2] = sub16(even, odd);
    t[3] = add16(near, twice);
    t[4] = sub16(near, twice);
    t[5] = sub16(sub16(d[5], d[3]), add16(twice, twice));
  }

  INLINE void weight(const __m256i (&g)[3], __m256i (&t)[6]) {
    __m256i six = _mm256_set1_epi16(6);
    __asm__("" : "+x"(six));  // or gcc makes two shifts and a sum of a product
    const __m256i ends = add16(g[0], g[2]), far = add16(g[0], _mm256_slli_epi16(g[2], 2)), twice = add16(g[1], g[1]);
    t[0] = _mm256_mullo_epi16(g[0], six);
    t[1] = add16(ends, g[1]);
    t[2] = sub16(ends, g[1]);
    t[3] = add16(far, twice);
    t[4] = sub16(far, twice);
    t[5] = _mm256_mullo_epi16(g[2], six);
  }

  INLINE void output(const __m256i (&m)[6], __m256i (&y)[4]) {
    const __m256i sum = add32(m[1], m[2]), difference = sub32(m[1], m[2]);
    const __m256i far_sum = add32(m[3], m[4]), far_difference = sub32(m[3], m[4]);
    const __m256i twice = add32(far_difference, far_difference);
    y[0] = sub32(add32(m[0], far_sum), _mm256_slli_epi32(sum, 2));
    y[1] = sub32(twice, _mm256_slli_epi32(difference, 2));
    y[2] = _mm256_slli_epi32(sub32(far_sum, sum), 2);
    y[3] = _mm256_slli_epi32(sub32(add32(twice, m[5]), difference), 2);
  }

  INLINE __m256i without_odd(__m256i y) { return _mm256_mullo_epi32(y, _mm256_set1_epi32(954437177)); }  // 9^-1
};

template <int kSize>
void transform(const QwinogradInput& input) {
  constexpr int n = kSize + 2;
  const __m256i zero = _mm256_set1_epi16((int16_t)input.x_zero);
  for (int64_t t = 0; t < input.tiles; t++) {
    const uint8_t* const* pixels = input.pixels + t * n * n;
    int16_t* v = input.v + t * input.channels;
    for (int64_t i = 0; i < input.channels; i += kQwinogradLanes) {
      __m256i half[n][n], in[n], out[n];
      UNROLL for (int x = 0; x < n; x++) {
        UNROLL for (int y = 0; y < n; y++) {
          in[y] = sub16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(pixels[y * n + x] + i))), zero);
        }
        Winograd<kSize>::input(in, out);
        UNROLL for (int y = 0; y < n; y++) half[y][x] = out[y];
      }
      UNROLL for (int y = 0; y < n; y++) {
        Winograd<kSize>::input(half[y], out);
        UNROLL for (int x = 0; x < n; x++) {
          _mm256_store_si256((__m256i*)(v + (y * n + x) * input.pitch + i), out[x]);
        }
      }
    }
  }
}

INLINE __m256i low_bytes(__m256i w) { return _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8); }
INLINE __m256i high_bytes(__m256i w) { return _mm256_srai_epi16(w, 8); }

// U of rows Y and Z of the grid, of the `pairs` from `weight` on.
template <int kSize, int Y, int Z>
void transform_weight(const int8_t* weight, int64_t pairs, int16_t* u, int64_t pitch) {
  constexpr int n = kSize + 2;
  for (const int8_t* end = weight + pairs * 9 * kPair; weight != end; weight += 9 * kPair, u += kPair) {
    UNROLL for (int v = 0; v < 2; v++) {
      __m256i first[3], second[3], in[3], out[n];
      UNROLL for (int x = 0; x < 3; x++) {
        UNROLL for (int y = 0; y < 3; y++) {
          const __m256i both = _mm256_load_si256((const __m256i*)(weight + (y * 3 + x) * kPair));
          in[y] = v == 0 ? low_bytes(both) : high_bytes(both);
        }
        Winograd<kSize>::weight(in, out);
        first[x] = out[Y];  // the compiler leaves the rest out
        second[x] = out[Z];
      }
      int16_t* to = u + v * kPair / 2;
      Winograd<kSize>::weight(first, out);
      UNROLL for (int x = 0; x < n; x++) _mm256_store_si256((__m256i*)(to + x * pitch), out[x]);
      Winograd<kSize>::weight(second, out);
      UNROLL for (int x = 0; x < n; x++) _mm256_store_si256((__m256i*)(to + (n + x) * pitch), out[x]);
    }
  }
}

// Rows that have most of their sums in common; all rows of the grid, two by two.
using TransformWeight = void (*)(const int8_t*, int64_t, int16_t*, int64_t);
struct Rows {
  int rows[2];
  TransformWeight transform;
};

template <int kSize>
constexpr Rows kGrid[kSize / 2 + 1] = {};
template <>
constexpr Rows kGrid<2>[2] = {{{0, 3}, transform_weight<2, 0, 3>}, {{1, 2}, transform_weight<2, 1, 2>}};
template <>
constexpr Rows kGrid<4>[3] = {{{0, 5}, transform_weight<4, 0, 5>},
                              {{1, 2}, transform_weight<4, 1, 2>},
                              {{3, 4}, transform_weight<4, 3, 4>}};

// As assembly, and in this order: gcc 12 multiplies all first and spills the accumulators.
INLINE void dot(__m256i (&sum)[2], const int32_t* pair, __m256i first, __m256i second) {
  __m256i v, products;
  __asm__(
      "vpbroadcastd %4, %2\n\tvpmaddwd %5, %2, %3\n\tvpmaddwd %6, %2, %2\n\t"
      "vpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
      : "+x"(sum[0]), "+x"(sum[1]), "=&x"(v), "=&x"(products)
      : "m"(*pair), "x"(first), "x"(second));
}

struct Product {
  const int32_t* v;  // pairs
  int64_t step;      // from a tile to the next
  const int16_t* u;
  int64_t pairs;
  int32_t* m;
  bool adds;  // to what is in m
};

// M of one position for R tiles.
template <int R>
void multiply_tiles(const Product& product) {
  const int64_t step = product.step;
  __m256i* m = (__m256i*)product.m;
  __m256i sum[R][2];
  UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  if (product.adds) {
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2; v++) sum[r][v] = _mm256_load_si256(m + r * 2 + v);
  }
  const __m256i *weight = (const __m256i*)product.u, *end = weight + product.pairs * 2;
  const int32_t *v = product.v, *last = v + 3 * step;  // a second base: an address has no factor of 3
  for (; weight != end; v++, last++, weight += 2) {
    const __m256i first = _mm256_load_si256(weight), second = _mm256_load_si256(weight + 1);
    UNROLL for (int r = 0; r < R; r++) dot(sum[r], r < 3 ? v + r * step : last + (r - 3) * step, first, second);
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2; v++) _mm256_store_si256(m + r * 2 + v, sum[r][v]);
}

using MultiplyTiles = void (*)(const Product& product);
constexpr MultiplyTiles kMultiply[kRows] = {multiply_tiles<1>, multiply_tiles<2>, multiply_tiles<3>,
                                            multiply_tiles<4>, multiply_tiles<5>, multiply_tiles<6>};

// The tiles of one position in blocks of nearly equal size: its weights stay in the L1 cache.
INLINE void multiply_position(Product product, int64_t tiles) {
  for (int64_t blocks = (tiles + kRows - 1) / kRows; blocks > 0; blocks--) {
    const int64_t rows = (tiles + blocks - 1) / blocks;
    kMultiply[rows - 1](product);
    product.v += rows * product.step;
    product.m += rows * kColumns;
    tiles -= rows;
  }
}

// U of two rows of the grid is made when it is wanted, and so is in a cache.
template <int kSize>
void multiply(const QwinogradJob& job) {
  constexpr int n = kSize + 2;
  for (int64_t first = 0; first < job.pairs; first += job.block) {
    const int64_t pairs = job.pairs - first < job.block ? job.pairs - first : job.block;
    for (const Rows& two : kGrid<kSize>) {
      two.transform(job.panel->weight + first * 9 * kPair, pairs, job.u, job.u_pitch);
      for (int i = 0; i < 2 * n; i++) {
        const int y = two.rows[i / n], x = i % n;
        const QwinogradRange range = qwinograd_range(job.counts, n, y, x);
        const int16_t* v = job.v + (y * n + x) * job.v_pitch + range.begin * job.channels + first * 2;
        int32_t* m = job.m + (y * n + x) * job.m_pitch + range.begin * kColumns;
        const Product product = {(const int32_t*)v, job.channels / 2, job.u + i * job.u_pitch, pairs, m, first > 0};
        multiply_position(product, range.end - range.begin);
      }
    }
  }
}

// The sums of 8 channels of a tile's pixels.
template <int kSize>
INLINE void tile_sums(const int32_t* m, int64_t pitch, __m256i start, __m256i (&sum)[kSize][kSize]) {
  constexpr int n = kSize + 2;
  __m256i half[kSize][n], in[n], out[kSize];
  UNROLL for (int x = 0; x < n; x++) {
    UNROLL for (int y = 0; y < n; y++) in[y] = _mm256_load_si256((const __m256i*)(m + (y * n + x) * pitch));
    Winograd<kSize>::output(in, out);
    UNROLL for (int y = 0; y < kSize; y++) half[y][x] = out[y];
  }
  UNROLL for (int y = 0; y < kSize; y++) {
    Winograd<kSize>::output(half[y], out);
    UNROLL for (int x = 0; x < kSize; x++) {
      sum[y][x] = add32(_mm256_srai_epi32(Winograd<kSize>::without_odd(out[x]), Winograd<kSize>::kShift), start);
    }
  }
}

// R neighbouring pixels to bytes, by what qconv ends a tile with; sums are [vector][pixel].
template <int R>
INLINE void finish_pixels(const QconvJob& job, int64_t at, int64_t pixel, const __m256i* first, const __m256i* second) {
  const int64_t outputs[2] = {at, at + pixel};
  __m256i sum[R][2];
  UNROLL for (int r = 0; r < R; r++) {
    sum[r][0] = first[r];
    sum[r][1] = second[r];
  }
  QconvTile tile = {};
  tile.outputs = outputs;
  finish_tile<R, 2>(job, tile, sum);
}

template <int kSize>
void run(const QwinogradJob& job) {
  multiply<kSize>(job);
  const QwinogradPanel& panel = *job.panel;
  const QconvFinish f = *job.finish;  // a copy, since a store of bytes might change all else
  QconvJob end = {};
  end.columns = panel.columns;
  end.bias = panel.bias;
  end.multiplier = panel.multiplier;
  end.finish = &f;
  end.residual = job.residual;
  end.out = job.out;
  const int64_t tiles = qwinograd_range(job.counts, kSize + 2, 0, 0).end;
  for (int64_t t = 0; t < tiles; t++) {
    const QwinogradTile& tile = job.tiles[t];
    __m256i sums[2][kSize][kSize];
    for (int v = 0; v < 2; v++) {
      const __m256i start = _mm256_load_si256((const __m256i*)(panel.start + v * kLanes));
      tile_sums<kSize>(job.m + t * kColumns + v * kLanes, job.m_pitch, start, sums[v]);
    }
    for (int y = 0; y < tile.rows; y++) {
      int64_t at = tile.output + y * job.line;
      int x = 0;
      for (; x + 1 < tile.columns; x += 2, at += 2 * job.pixel) {
        finish_pixels<2>(end, at, job.pixel, sums[0][y] + x, sums[1][y] + x);
      }
      if (x < tile.columns) finish_pixels<1>(end, at, job.pixel, sums[0][y] + x, sums[1][y] + x);
    }
  }
}

}  // namespace

const QwinogradKernel qwinograd_avx2_2x2 = {2, Winograd<2>::kShift, transform<2>, run<2>};
const QwinogradKernel qwinograd_avx2_4x4 = {4, Winograd<4>::kShift, transform<4>, run<4>};

}  // namespace qtool
