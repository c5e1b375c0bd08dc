// Quantized 3x3 convolution with stride 1 over NHWC by Winograd's minimal filtering, exact in integers: a tile of m x m
// outputs takes n x n products a channel, n = m + 2, in place of 9 m x m: 16 for 36 with m = 2, 36 for 144 with m = 4.
// A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
//
//   V[p, t, i] = (B' d B)[p]       d  the n x n inputs of tile t, channel i, less x_zero; 0 outside of the picture
//   U[p, i, o] = (G g G')[p]       g  the 3x3 weights of input channel i and output channel o; ' is the transpose
//   M[p, t, o] = sum over i of V[p, t, i] * U[p, i, o]
//   Y[y, x, t, o] = (A' M A)[y, x] = s * sum[y, x, t, o]                the sums of qconv.h without their start
//
//   p  position in the n x n grid, row-major; t tile, (picture, y, x) row-major; i input channel; o output channel
//
//   m = 2, s = 4: the usual matrices, G doubled            m = 4, s = 24 * 24: from the points 0, +-1, +-2, infinity
//        1  0 -1  0        2  0  0                              4  0 -5  0  1  0       6  0  0
//   B' = 0  1  1  0    G = 1  1  1    A' = 1 1  1  0            0 -4 -4  1  1  0       1  1  1         1 -4 -4 1  1 0
//        0 -1  1  0        1 -1  1         0 1 -1 -1       B' = 0  4 -4 -1  1  0   G = 1 -1  1    A' = 0 -4  4 2 -2 0
//        0  1  0 -1        0  0  2                              0 -2 -1  2  1  0       1  2  4         0 -4 -4 4  4 0
//                                                               0  2 -1 -2  1  0       1 -2  4         0 -4  4 8 -8 4
//                                                               0  4  0 -5  0  1       0  0  6
//
// V and U are int16: |V| <= 255 * 4 with m = 2, and 255 * 68 with m = 4 (the larger of the sums of positive and of
// negative elements of an outer product of two rows of B'); |U| <= 128 * 9 and 128 * 49. M and Y are int32 modulo 2^32,
// so what overflows on the way does no harm. With s = odd * 2^shift, Y times the inverse of `odd` modulo 2^32 is
// sum * 2^shift, and an arithmetic shift gives the sum itself if |sum| < 2^(31 - shift). pack.h proves that from the
// weights, or the layer goes to another kernel. From there on all is as in qconv.h, with start[o] = bias_i32[o].
//
// Weights are packed in panels of `columns` output channels, two registers of sums, the last filled with zeros: int8
// [i / 2][tap][h][i % 2][o / h] with h = columns / 2, an odd last channel's with zeros, so that a shift makes int16
// [h][i % 2] of them. U is made of them on the way, for the tiles of a chunk, two rows of the grid and a block of pairs
// of channels: it would be 4 or 8 times as large, and reading it from memory takes longer than making it. As int16
// [p][i / 2][columns][i % 2] it lies in the caches.
//
// Tiles that reach over the lower or the right edge have fewer outputs there and go without some rows or columns of the
// grid: the last one serves the last output alone. Of four outputs, one or two need the points 0, +-1 and infinity only:
// rows 0, 1, 2 and 5 of the grid, for which G stays as it is, and
//
//         1  0 -1  0  0  0
//   B' =  0  1  1  0  0  0                    4  12  12  0  0  0
//         0 -1  1  0  0  0               A' = 0  12 -12  0  0  4
//         0 -1  0  1  0  0   in row 5
//
// So that those of a position are neighbours, tiles are sorted by the edges that they reach over.
//
// This header is all that an instruction set file includes of the family.
#pragma once

#include <stdint.h>

#include "qconv/qconv.h"

namespace qtool {

// How many tiles of a chunk there are of each kind, in this order; and which rows or columns of the grid, a bit each, are
// taken by those that reach over an edge.
struct QwinogradCounts {
  int64_t bottom, whole, right, corner;  // reach over the lower edge, none, the right edge, both
  uint32_t rows, columns;
};

// Whether so many of `size` outputs in a row or column are computed by the matrices for one or two.
static inline bool qwinograd_few(int size, int outputs) { return size == 4 && outputs <= 2; }

// The rows of the grid for so many of `size` outputs.
static inline uint32_t qwinograd_taken(int size, int outputs) {
  if (qwinograd_few(size, outputs)) return outputs == 2 ? 1u << 0 | 1u << 1 | 1u << 2 | 1u << 5 : 1u << 0 | 1u << 1 | 1u << 2;
  return (1u << (size + (outputs == size ? 2 : 1))) - 1;
}

struct QwinogradTile {
  int64_t output;         // where its first pixel begins in the output
  int32_t rows, columns;  // pixels to write, at most m x m: the last tiles may reach over the edge
};

// Tiles begin .. end - 1 have the position in row y and column x of the grid.
struct QwinogradRange {
  int64_t begin, end;
};

static inline QwinogradRange qwinograd_range(const QwinogradCounts& counts, int y, int x) {
  const bool below = counts.rows >> y & 1, beside = counts.columns >> x & 1;
  const int64_t whole_end = counts.bottom + counts.whole, right_end = whole_end + counts.right;
  const int64_t begin = below ? 0 : counts.bottom;
  if (!beside) return {begin, whole_end};
  return {begin, below ? right_end + counts.corner : right_end};
}

struct QwinogradPanel {
  int64_t output;         // first channel
  int columns;            // channels to write, at most the kernel's
  const int8_t* weight;   // 64-byte aligned, as the arrays of the kernel's columns:
  const int32_t* start;
  const float* bias;
  const float* multiplier;
};

// What the tiles see: V[p, t, i] is to be at v[p * pitch + t * channels + i].
struct QwinogradInput {
  const uint8_t* const* pixels;  // [tiles][n * n], channel 0 of each; those outside lead to bytes of x_zero
  const QwinogradTile* tile;     // [tiles]
  int64_t tiles, channels;       // channels are a multiple of the kernel's: what lies beyond meets weights of 0
  int x_zero;
  int16_t* v;  // 64-byte aligned
  int64_t pitch;
};

// One panel of the tiles' outputs.
struct QwinogradJob {
  const int16_t* v;
  int64_t v_pitch, channels, pairs;  // pairs of channels that have weights
  const QwinogradTile* tiles;
  QwinogradCounts counts;
  int16_t* u;  // [2 * n][u_pitch], U of two rows and up to `block` pairs of channels; scratch, 64-byte aligned
  int64_t u_pitch, block;
  int32_t* m;  // [t][p][columns], scratch, 64-byte aligned
  const QwinogradPanel* panel;
  const QconvFinish* finish;
  const uint8_t* residual;  // as out, or NULL
  uint8_t* out;             // channel c of pixel y, x of a tile at out[tile.output + y * line + x * pixel + c]
  int64_t line, pixel;
};

// What a kernel's steps take, in cycles.
struct QwinogradCosts {
  double product;  // of a pair of channels, a position, a tile and a panel
  double weight;   // transforming a pair of channels of a panel
  double input;    // the same of `lanes` channels of a tile
  double output;   // the same of a tile of a panel, to bytes
};

// A kernel with what the packing and the choice must know of it.
struct QwinogradKernel {
  int size, shift;          // m, and of s = odd * 2^shift
  int columns, lanes;       // output channels of a panel; input channels are rounded up to these
  int64_t chunk_bytes;      // V and M of a chunk are walked once a panel and should about stay in the L2 cache,
  int64_t least_tiles;      // but the weights are transformed once a chunk: it should have so many tiles nonetheless
  QwinogradCosts costs;
  void (*transform)(const QwinogradInput& input);
  void (*run)(const QwinogradJob& job);
};

#define QT_KERNEL(isa, name, tile) extern const QwinogradKernel name;
#include "qwinograd/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
