// Linear layer over float32 whose input is quantized while it runs: torch.ops.quantized.linear_dynamic.
//
//   q[m, k] = clamp(nearbyint(fma(x[m, k], 1 / sx[m], float(zx[m]))), 0, 255)   half to even; NaN gives 0
//   acc[m, o] = sum over k of (q[m, k] - zx[m]) * w[o, k]                       int32, exact
//   y[m, o] = clamp(fma(float(acc[m, o]), sx[m] * sw[o], bias[o]), low, high)
//
// FBGEMM adds the zero point before the rounding and fuses it, as QUANTIZE does, and fuses the bias in its vector code
// (`fused`); QNNPACK rounds the product and then the sum.
//
//   m  row of x, 0..rows-1; k  input feature; o  output feature
//   sx, zx  of the whole of x, or of each row, by ChooseQuantizationParams (params.h)
//
// With `reduce_range` q is 128 at most: the range is spread over 127 steps, and the zero point is within half a step of
// its place. So the sum of two products with weights fits 16 bits: 2 * 128 * 128 = 2^15, and that only below zero.
//
// q is written once to scratch rows of `element_bytes` an element. Weights are packed in panels of `columns` features,
// [k / group][columns][group], the last panel rounded up to `step` features and k up to `depth`, filled with zeros; what
// q holds past the last k is multiplied by those. sums[o] = sum over k of w[o, k] takes the zero point out:
// acc = sum q * w - zx * sums, exact modulo 2^32.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

// One tile: `rows` rows by `vectors * step` features over all k.
struct QlinearDynamicTile {
  const void* q;           // row r at r * q_bytes
  int64_t q_bytes;
  int64_t groups;          // of k
  const int8_t* weight;    // [groups][width][group], width = vectors * step
  const int32_t* sums;     // [width]
  const float* scale;      // [width]
  const float* bias;       // [width]
  const float* x_scale;    // [rows]
  const int32_t* x_zero;   // [rows]
  float* out;              // row r, feature c at out[r * pitch + c]
  int64_t pitch;
  int rows, vectors;       // 1..kernel.rows, 1..kernel.columns / step
  int columns;             // features to write, at most width; only the last vector may be partly used
  float low, high;
  bool fused;              // one rounding for product and bias
  bool same_params;        // x_scale and x_zero are the same for all rows
  const int8_t* prefetch;  // a line of 64 bytes a group that may be brought nearer: a part of the next panel
};

struct QlinearDynamicKernel {
  int rows, columns, step, group, element_bytes;
  int depth;       // k is filled up to a multiple of it, itself a multiple of `group`
  int row_tile;    // rows of q that are read together, also past the last one
  int least_rows;  // with fewer the rows before this one in kernels.inc are faster
  // Widens range[0] .. range[1] to hold x; NaN does not count.
  void (*min_max)(const float* x, int64_t count, float range[2]);
  // Writes q, and may write up to the next multiple of 64 bytes.
  void (*quantize)(const float* x, int64_t count, float inverse_scale, int32_t zero, void* q);
  void (*run)(const QlinearDynamicTile& tile);
  bool reduced = false;  // for `reduce_range` only
};

#define QT_KERNEL(isa, name, tile) extern const QlinearDynamicKernel name;
#include "qlinear_dynamic/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
