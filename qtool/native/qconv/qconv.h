// Quantized convolution over NHWC (also 1-d, grouped and linear) as a matrix product without im2col.
//
//   sum[m, o] = start[o] + sum over k of a[m, k] * w[o, k]     exact, in int32 modulo 2^32
//   start[o]  = bias_i32[o] - x_zero * sum over k of w[o, k]   so that a may be the stored bytes, zero point and all
//   r[m, o]   = (float(sum) + bias_f32[o]) * multiplier[o] (+ (float(res) - res_zero) * res_multiplier)
//   q[m, o]   = nearbyint(clamp(r, out_min - out_zero, out_max - out_zero)) + out_zero
//
//   m  output pixel, 0..M-1: (n, y, x) row-major, so that the output is a dense [M][O] matrix
//   k  0..K-1, ordered (tap, i): tap is (ky, kx), or ky alone where the kernel's columns lie side by side in memory
//   o  output channel; a group's channels are a product of their own
//
// a is not built: each pixel has a pointer a tap, to its input bytes, or to a row of x_zero for taps outside of the
// picture. Taps that all pixels of a region see outside are left out, in the sums and in their start (regions.h). A tap
// is walked in steps of 4 bytes; the weights of what is read past its end are 0 (so up to 3 bytes past the input's own
// end are read, see QT_SLACK). Weights are packed in panels of `columns` channels, the last panel of a
// group rounded up to `step` channels and filled with zeros. The weight of a panel for k and channel c, an int8, is at
// [k / group][c][k % group]: a kernel's `group` is of 4 neighbours for products of bytes, of 2 for those of 16 bits.
//
// A kernel with `widen` does build a, a chunk of pixels at a time: `words`, in 16 bits, which all panels of a group of
// channels then read.
//
// A kernel with `split` weights multiplies pairs (j = 0, 1 and 2, 3) of bytes and adds the two products in an int16. No
// sum of any two bytes leaves its range if the pair's weights add up to -128..128: 128 * 255 < 2^15. What a pair has
// beyond is put into a further step for the same bytes, which holds it always: of weights of one sign, 254 = 128 + 126
// and -256 = -128 - 128 are the worst.
//
// This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

// From a sum to a byte: what is the same for all channels.
struct QconvFinish {
  int32_t out_zero, out_min, out_max;
  float low, high;  // out_min - out_zero, out_max - out_zero
  float res_zero, res_multiplier;
  bool fits;  // every r is within the range of int32: it may be clamped after it is rounded
};

// A tile: up to kernel.rows pixels, all channels of a panel.
struct QconvTile {
  const uint8_t* const* pixels;  // tap t of row r begins at pixels[t * step + r] + offsets[t] + job.offset
  int64_t step;
  const int64_t* offsets;  // [taps]
  const int64_t* outputs;  // [rows], where they begin in the output
  int64_t rows;            // 1..kernel.rows
  uint8_t* words;          // of a kernel with `widen`: uint16 [rows][taps][length], rows words_pitch bytes apart
};

// The further steps of split weights; those of tap t are begins[t] .. begins[t + 1] - 1.
struct QconvRest {
  const int32_t* begins;  // [taps of the panel + 1]
  const int32_t* at;      // [steps], byte of the tap
  const int8_t* weight;   // [steps][c][j]; 64-byte aligned
};

// Tiles of one panel that see the same taps.
struct QconvJob {
  const QconvTile* tiles;
  const QconvTile* end;
  int64_t taps, length;     // length is in bytes, a multiple of 4
  int64_t offset;           // the group's first input channel
  int64_t words_pitch;
  const int64_t* taken;     // [taps], which of the panel's taps
  int64_t tap_bytes;        // of the panel's weights
  int vectors;              // 1..kernel.columns / step
  int columns;              // channels to write, at most width = vectors * step; the last vector may be partly used
  const void* weight;       // the panel; 64-byte aligned, as the three arrays of it:
  const QconvRest* rest;    // of a kernel with split weights
  const int32_t* start;     // [width]
  const float* bias;        // [width]
  const float* multiplier;  // [width]
  const QconvFinish* finish;
  const uint8_t* residual;  // as out, or NULL
  uint8_t* out;             // the panel's channel c of a row at out[outputs[row] + c]
};

// A kernel with what the packing must know of it.
struct QconvKernel {
  int rows, columns, step, group;
  bool narrow;  // better than the others where a group has no more channels than `columns`, worse where it has
  void (*run)(const QconvJob& job);
  bool split = false;  // faster, the more pairs of weights need no further step
  void (*widen)(const QconvJob& job) = nullptr;  // fills the tiles' words; reads nothing of a panel but its offset
};

#define QT_KERNEL(isa, name, tile) extern const QconvKernel name;
#include "qconv/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
