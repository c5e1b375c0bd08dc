// Float32 convolution for training, over NHWC: forward with weights that are an input, and the two gradients. Indices
// and sizes as in qt_conv_args, of the forward convolution in all three.
//
//   forward      y[n, y, x, o] = sum over (ky, kx, i) of x[n, y*sh - pt + ky*dh, ..., i] * w[o, ky, kx, i] + bias[o]
//   input grad   dx[n, h, v, i] = sum over (ky, kx, o) with y*sh - pt + ky*dh = h of dy[n, y, x, o] * w[o, ky, kx, i]
//   weight grad  dw[o, ky, kx, i] = sum over (n, y, x) of x[n, y*sh - pt + ky*dh, ..., i] * dy[n, y, x, o]
//
// All three run on the kernels of sconv (sdwconv and the rows of this family where every channel is by itself). The
// weights are packed at each run, on all threads, to memory of the operator. No bit depends on the number of threads:
// what is summed in parts is cut by the shapes alone, and the parts are added in their order.
#pragma once

#include "core/op.h"
#include "core/rows.h"
#include "layout/layout.h"
#include "sconv/sconv.h"

namespace qtool {

// What the operators of the family are made of.
struct TconvRows {
  Row<const SconvKernel*> row;
  const LayoutKernels* layout;
  int threads;
  Memory* memory;
};

std::unique_ptr<Op> make_input_grad(const qt_conv_args& args, const TconvRows& rows);
std::unique_ptr<Op> make_weight_grad(const qt_conv_args& args, const TconvRows& rows);

}  // namespace qtool
