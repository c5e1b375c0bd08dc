// Float32 convolution for training, over NHWC: forward with weights that are an input, and the two gradients. Indices
// and sizes as in qt_conv_args, of the forward convolution in all three.
//
//   forward      y[n, y, x, o] = sum over (ky, kx, i) of x[n, y*sh - pt + ky*dh, ..., i] * w[o, ky, kx, i] + bias[o]
//   input grad   dx[n, h, v, i] = sum over (ky, kx, o) with y*sh - pt + ky*dh = h of dy[n, y, x, o] * w[o, ky, kx, i]
//   weight grad  dw[o, ky, kx, i] = sum over (n, y, x) of x[n, y*sh - pt + ky*dh, ..., i] * dy[n, y, x, o]
//
// They run on the kernels of sconv; where every channel is by itself on those of sdwconv, the weight's gradient on
// the rows of this family. Weights are packed at each run, on all threads, to memory of the operator. No bit depends on the number of threads:
// what is summed in parts is cut by the shapes alone, and the parts are added in their order.
#pragma once

#include "core/op.h"
#include "core/rows.h"
#include "layout/layout.h"
#include "sconv/sconv.h"
#include "sdwconv/sdwconv.h"

namespace qtool {

// What the operators of the family are made of. `depthwise` has a kernel where it is to be used instead of `product`.
struct TconvRows {
  Row<const SconvKernel*> product;
  Row<const SdwconvKernel*> depthwise;
  const LayoutKernels* layout;
  int threads;
  Memory* memory;

  const char* name() const { return depthwise.kernel != nullptr ? depthwise.name : product.name; }
};

std::unique_ptr<Op> make_input_grad(const qt_conv_args& args, const TconvRows& rows);
std::unique_ptr<Op> make_weight_grad(const qt_conv_args& args, const TconvRows& rows);
std::unique_ptr<Op> make_depthwise_grad(const qt_conv_args& args, const MakeContext& context);

}  // namespace qtool
