// What the instruction sets have in common. Transforms run over a register of input channels in 16 bits and a register
// of output channels in 32 bits, along columns first and then along rows; panels are two registers of sums wide.
//
// Before it includes this, an instruction set's file has kLanes, UNROLL and finish_tile of qconv's header, and
//
//   Register                                    its vector of integers
//   Words, Numbers                              vectors of uint16 and uint32 of that size
//   Words words_of(const uint8_t* bytes)        2 * kLanes bytes
//   kRows, kMultiply[kRows]                     M of one position for 1 .. kRows tiles
//
// No file but those may include it.
#include "qwinograd/qwinograd.h"
#include "qwinograd/steps.h"

namespace qtool {
namespace {

constexpr int kColumns = 2 * kLanes, kPair = 2 * kColumns;

template <int kSize>
constexpr int kTile = (kSize + 2) * (kSize + 2) * kColumns;  // of M

template <int kSize, bool kFewRows, bool kFewColumns>
void transform_tile(const QwinogradInput& input, int64_t t) {
  constexpr int n = kSize + 2;
  const Words zero = Words{} + (uint16_t)input.x_zero;
  const uint8_t* const* pixels = input.pixels + t * n * n;
  int16_t* v = input.v + t * input.channels;
  for (int64_t i = 0; i < input.channels; i += 2 * kLanes) {
    Words half[n][n], in[n], out[n];
    UNROLL for (int x = 0; x < n; x++) {
      UNROLL for (int y = 0; y < n; y++) in[y] = words_of(pixels[y * n + x] + i) - zero;
      Steps<kSize, kFewRows>::input(in, out);
      UNROLL for (int y = 0; y < n; y++) half[y][x] = out[y];
    }
    UNROLL for (int y = 0; y < n; y++) {
      Steps<kSize, kFewColumns>::input(half[y], out);
      UNROLL for (int x = 0; x < n; x++) *(Words*)(v + (y * n + x) * input.pitch + i) = out[x];
    }
  }
}

template <int kSize>
void transform(const QwinogradInput& input) {
  using Transform = void (*)(const QwinogradInput&, int64_t);
  static constexpr Transform kTransform[2][2] = {
      {transform_tile<kSize, false, false>, transform_tile<kSize, false, true>},
      {transform_tile<kSize, true, false>, transform_tile<kSize, true, true>}};
  for (int64_t t = 0; t < input.tiles; t++) {
    const QwinogradTile& tile = input.tile[t];
    kTransform[qwinograd_few(kSize, tile.rows)][qwinograd_few(kSize, tile.columns)](input, t);
  }
}

INLINE Words low_bytes(Words w) { return (Words)((SignedWords)(w << 8) >> 8); }
INLINE Words high_bytes(Words w) { return (Words)((SignedWords)w >> 8); }

// U of rows Y and Z of the grid, of the `pairs` from `weight` on.
template <int kSize, int Y, int Z>
void transform_weight(const int8_t* weight, int64_t pairs, int16_t* u, int64_t pitch) {
  constexpr int n = kSize + 2;
  constexpr int kAhead = 8 * 9 * kPair;
  for (const int8_t* end = weight + pairs * 9 * kPair; weight != end; weight += 9 * kPair, u += kPair) {
    if (Y == 0) {  // the first to see them
      UNROLL for (int line = 0; line < 9 * kPair; line += 64) __builtin_prefetch(weight + kAhead + line, 0, 3);
    }
    UNROLL for (int v = 0; v < 2; v++) {
      Words first[3], second[3], in[3], out[n];
      UNROLL for (int x = 0; x < 3; x++) {
        UNROLL for (int y = 0; y < 3; y++) {
          const Words both = *(const Words*)(weight + (y * 3 + x) * kPair);
          in[y] = v == 0 ? low_bytes(both) : high_bytes(both);
        }
        Winograd<kSize>::weight(in, out);
        first[x] = out[Y];  // the compiler leaves the rest out
        second[x] = out[Z];
      }
      int16_t* to = u + v * kPair / 2;
      Winograd<kSize>::weight(first, out);
      UNROLL for (int x = 0; x < n; x++) *(Words*)(to + x * pitch) = out[x];
      Winograd<kSize>::weight(second, out);
      UNROLL for (int x = 0; x < n; x++) *(Words*)(to + (n + x) * pitch) = out[x];
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

// The tiles of one position in blocks of nearly equal size: its weights stay in the L1 cache.
INLINE void multiply_position(Product product, int64_t tiles) {
  for (int64_t blocks = (tiles + kRows - 1) / kRows; blocks > 0; blocks--) {
    const int64_t rows = (tiles + blocks - 1) / blocks;
    kMultiply[rows - 1](product);
    product.v += rows * product.step;
    product.m += rows * product.m_step;
    tiles -= rows;
  }
}

// A part of the weights behind these, which come next. One pass over all of them would wait for the memory.
INLINE void fetch_part(const int8_t* weight, int64_t bytes, int part, int parts) {
  const int8_t* end = weight + bytes * (part + 1) / parts;
  for (weight += bytes * part / parts; weight < end; weight += 64) __builtin_prefetch(weight, 0, 2);
}

// U of two rows of the grid is made when it is wanted, and so is in a cache.
template <int kSize>
void multiply(const QwinogradJob& job) {
  constexpr int n = kSize + 2;
  for (int64_t first = 0; first < job.pairs; first += job.block) {
    const int64_t pairs = job.pairs - first < job.block ? job.pairs - first : job.block;
    const int8_t* next = job.panel->weight + (job.pairs + first) * 9 * kPair;
    int part = 0;
    for (const Rows& two : kGrid<kSize>) {
      two.transform(job.panel->weight + first * 9 * kPair, pairs, job.u, job.u_pitch);
      for (int i = 0; i < 2 * n; i++) {
        const int y = two.rows[i / n], x = i % n;
        const QwinogradRange range = qwinograd_range(job.counts, y, x);
        Product product = {};
        product.v = (const int32_t*)(job.v + (y * n + x) * job.v_pitch + range.begin * job.channels + first * 2);
        product.step = job.channels / 2;
        product.u = job.u + i * job.u_pitch;
        product.pairs = pairs;
        product.m = job.m + range.begin * kTile<kSize> + (y * n + x) * kColumns;
        product.m_step = kTile<kSize>;
        product.adds = first > 0;
        multiply_position(product, range.end - range.begin);
        fetch_part(next, pairs * 9 * kPair, part++, n * n);
      }
    }
  }
}

// A' M A by columns, which leaves the rows to do: M of a tile, kLanes channels.
template <int kSize, bool kFew>
INLINE void half_output(const int32_t* m, Numbers (&half)[kSize][kSize + 2]) {
  constexpr int n = kSize + 2;
  UNROLL for (int x = 0; x < n; x++) {
    Numbers in[n], out[kSize];
    UNROLL for (int y = 0; y < n; y++) in[y] = *(const Numbers*)(m + (y * n + x) * kColumns);
    Steps<kSize, kFew>::output(in, out);
    UNROLL for (int y = 0; y < kSize; y++) half[y][x] = out[y];
  }
}

// The sums of a row of pixels.
template <int kSize, bool kFew>
INLINE void row_sums(const Numbers (&half)[kSize + 2], Numbers start, Register (&sum)[kSize][1]) {
  Numbers out[kSize];
  Steps<kSize, kFew>::output(half, out);
  UNROLL for (int x = 0; x < kSize; x++) {
    const SignedNumbers scaled = (SignedNumbers)Winograd<kSize>::without_odd(out[x]);
    sum[x][0] = (Register)((Numbers)(scaled >> Winograd<kSize>::kShift) + start);
  }
}

// kLanes channels of a tile to bytes, by what qconv ends a tile with.
template <int kSize, bool kFewRows, bool kFewColumns>
INLINE void finish_channels(const QconvJob& end, const QwinogradJob& job, const QwinogradTile& tile, const int32_t* m) {
  const Numbers start = *(const Numbers*)end.start;
  Numbers half[kSize][kSize + 2];
  half_output<kSize, kFewRows>(m, half);
  UNROLL for (int y = 0; y < kSize; y++) {
    if (y == tile.rows) break;
    Register sum[kSize][1];
    row_sums<kSize, kFewColumns>(half[y], start, sum);
    int64_t outputs[kSize];
    UNROLL for (int x = 0; x < kSize; x++) outputs[x] = tile.output + y * job.line + x * job.pixel;
    QconvTile line = {};
    line.outputs = outputs;
    if (tile.columns == kSize) {
      finish_tile<kSize, 1>(end, line, sum);
    } else {
      for (int x = 0; x < tile.columns; x++, line.outputs++) finish_tile<1, 1>(end, line, {{sum[x][0]}});
    }
  }
}

// The same of a tile over an edge.
template <int kSize, bool kFewRows, bool kFewColumns>
void finish_few(const QconvJob& end, const QwinogradJob& job, const QwinogradTile& tile, const int32_t* m) {
  finish_channels<kSize, kFewRows, kFewColumns>(end, job, tile, m);
}

template <int kSize>
INLINE void finish_any(const QconvJob& end, const QwinogradJob& job, const QwinogradTile& tile, const int32_t* m) {
  const bool few_rows = qwinograd_few(kSize, tile.rows), few_columns = qwinograd_few(kSize, tile.columns);
  if (!few_rows && !few_columns) return finish_channels<kSize, false, false>(end, job, tile, m);
  if (!few_columns) return finish_few<kSize, true, false>(end, job, tile, m);
  return few_rows ? finish_few<kSize, true, true>(end, job, tile, m) : finish_few<kSize, false, true>(end, job, tile, m);
}

template <int kSize>
void finish_tiles(const QwinogradJob& job) {
  const QwinogradPanel& panel = *job.panel;
  const QconvFinish f = *job.finish;  // a copy, since a store of bytes might change all else
  const int64_t tiles = qwinograd_range(job.counts, 0, 0).end;
  for (int at = 0; at < panel.columns; at += kLanes) {
    QconvJob end = {};
    end.columns = panel.columns - at < kLanes ? panel.columns - at : kLanes;
    end.start = panel.start + at;
    end.bias = panel.bias + at;
    end.multiplier = panel.multiplier + at;
    end.finish = &f;
    end.residual = job.residual != NULL ? job.residual + at : NULL;
    end.out = job.out + at;
    for (int64_t t = 0; t < tiles; t++) finish_any<kSize>(end, job, job.tiles[t], job.m + t * kTile<kSize> + at);
  }
}

template <int kSize>
void run(const QwinogradJob& job) {
  multiply<kSize>(job);
  finish_tiles<kSize>(job);
}

}  // namespace
}  // namespace qtool
