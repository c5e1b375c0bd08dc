// Quantized convolution over NHWC (also 1-d, grouped and linear) as a product of tiles, 16 pixels x 64 bytes of k by
// 64 bytes of k x 16 channels: for units that multiply whole tiles (AMX).
//
// The formula is that of qconv.h. Here k is dense, (ky, kx, i) row-major, rounded up to steps of 64 with weights of 0,
// and a tap outside of the picture is read as x_zero, so that all pixels have the same start.
//
// The pixels of a tile must be equally far apart in memory, and a step of k must lead equally far from all of them. So
// rows come from (place.h)
//   direct    the input, for 1x1 kernels with stride 1
//   padded    a copy of the picture's lines with x_zero around them, for stride 1; tiles run over the ends of lines,
//             and what they compute there is dropped
//   gathered  a matrix [pixel][k] that is copied together, for all else: small channel counts, strides, groups
// The first two need channels in multiples of 64, so that no row of a tile lies in two cache lines.
//
// Weights are packed in panels of 16 * V channels, V = 4 / R for blocks of R x V tiles (core/tile_product.h): int8
// [step][v][k / 4][16 channels][k % 4], the last panel of a group filled with zeros.
//
// This header is all that an instruction set file includes of the family.
#pragma once

#include <stdint.h>

#include "qconv/qconv.h"

namespace qtool {

struct QtileconvPanel {
  int columns;           // channels to write, at most 16 * V
  int64_t input, output;  // first channel
  const int8_t* weight;  // 64-byte aligned, as the arrays of 16 * V numbers:
  const int32_t* start;
  const float* bias;
  const float* multiplier;
};

struct QtileconvJob {
  int row_tiles;                // R: 1, 2 or 4
  const uint8_t* const* tiles;  // [blocks * R]; row r of tile i at step k is read at tiles[i] + r * pitch + offsets[k]
  const int64_t* outputs;       // [blocks * R][16], where rows begin in the output; -1 for those that are dropped
  int64_t blocks, pitch;
  const int64_t* offsets;  // [steps]
  int64_t steps;
  const QtileconvPanel* panels;
  int64_t panel_count;
  const QconvFinish* finish;
  const uint8_t* residual;  // as out, or NULL
  uint8_t* out;             // channel c of a row at out[outputs[row] + c]
};

// Rows of a gathered matrix, for pixels that are `step` bytes apart and have all their taps in the picture. A row is
// `length` bytes from source + offsets[run] for each run. Up to 63 bytes after a run are read, and after a row are
// written (before the next row is).
struct QtileconvGather {
  const uint8_t* source;
  int64_t step;
  const int64_t* offsets;  // [runs]
  int64_t runs, length;
  uint8_t* rows;
  int64_t count, pitch;
};

struct QtileconvKernel {
  void (*gather)(const QtileconvGather& gather);
  void (*run)(const QtileconvJob& job);
};

#define QT_KERNEL(isa, name, tile) extern const QtileconvKernel name;
#include "qtileconv/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
