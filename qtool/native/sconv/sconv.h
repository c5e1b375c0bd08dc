// Float32 convolution over NHWC (also 1-d and linear) as a matrix product without im2col.
//
//   y[m, o] = clamp(sum over k of a[m, k] * w[o, k] + bias[o] (+ residual[m, o]), low, high)
//
//   m  output pixel, 0..M-1: (n, y, x) row-major, so that the output is a dense [M][O] matrix
//   k  0..K-1, ordered (tap, i): tap is (ky, kx), or ky alone where the kernel's columns lie side by side in memory
//   o  output channel; a group's channels are a product of their own
//
// a is never built. Each pixel has a pointer a tap, to `length` input floats (one zero row for taps outside of the
// picture); the product walks them. Weights are packed in panels of `columns` channels, [k][columns], the last panel of
// a group rounded up to `step` channels and filled with zeros. Long sums are cut in blocks of k, so that a block of a
// panel stays in the L2 cache while all rows of a chunk use it; between blocks the sums wait in scratch memory.
//
// Every sum is one chain of additions in the order of k that starts at 0, whatever the tile, block, chunk or thread:
// rows of one kernel give the same bits for every shape of tile and every thread count.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

// One tile: `rows` pixels by `vectors * step` channels over one block of k.
struct SconvTile {
  const float* const* pixels;  // [taps][kernel.rows]; entries of rows that the tile does not have are not read
  int64_t taps;
  int64_t offset, length;  // floats i of each tap: offset .. offset + length - 1
  const float* weight;     // [taps * length][width], width = vectors * step
  float* partial;          // [rows][width]: the sums of the blocks before (unless `first`), and after (unless `last`)
  bool first, last;
  int rows;                // 1..kernel.rows
  int vectors;             // 1..kernel.columns / step
  int columns;             // channels to write, at most width; only the last vector may be partly used
  // Of the last block:
  const float* bias;       // [width]
  const float* residual;   // row r, channel c at residual[r * residual_pitch + c], or NULL
  float* out;              // row r, channel c at out[r * pitch + c]
  int64_t pitch, residual_pitch;
  float low, high;
};

// A kernel with what the packing must know of it.
struct SconvKernel {
  int rows, columns, step;
  void (*run)(const SconvTile& tile);
};

#define QT_KERNEL(isa, name, tile) extern const SconvKernel name;
#include "sconv/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
