// Sums over the rows of a [rows][channels] matrix of float32, and what batch norm makes of them (Ioffe and Szegedy, Batch
// normalization, 2015, section 3). Channel c of element i is c = i % channels.
//
//   norm   mean[c], var[c] = sum over rows of (x - mean)^2 / rows, inv_std = 1 / sqrt(var + eps)
//          y = x * scale + shift with scale = weight * inv_std, shift = bias - mean * scale
//   grad   dbias = sum of dy, dweight = sum of dy * (x - mean) * inv_std
//          dx = weight * inv_std * (dy - dbias / rows - (x - mean) * inv_std * dweight / rows)
//   sums   y[c] = sum of x
//   affine y = x * scale + shift, the product and the sum rounded each
//
// Few channels are too short a loop: kernels work with `period`, a multiple of the channels, and arrays of that length in
// which the channels repeat. Element i of a piece belongs to i % period; pieces begin at a row. Sums are taken piece by
// piece in float32 and put together in float64 in the order of the pieces, whose size depends on the shape alone: the
// variance by Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

// x, dy, dx, y have `count` elements, all others `period`.
struct TnormKernels {
  void (*add)(const float* x, int64_t count, int64_t period, float* sum);                            // sum += x
  void (*add_squares)(const float* x, int64_t count, int64_t period, const float* mean, float* sum);  // += (x - mean)^2
  // by_bias += dy, by_weight += dy * (x - mean)
  void (*add_grads)(const float* x, const float* dy, int64_t count, int64_t period, const float* mean, float* by_bias,
                    float* by_weight);
  // dx = factor * dy + (slope * (x - mean) + shift), fused
  void (*grad)(const float* x, const float* dy, float* dx, int64_t count, int64_t period, const float* const* mean_factor_slope_shift);
  void (*affine)(const float* x, float* y, int64_t count, int64_t period, const float* scale, const float* shift);
};

#define QT_KERNEL(isa, name, tile) extern const TnormKernels name;
#include "tnorm/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
