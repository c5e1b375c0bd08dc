// Packing the weights of a product while a plan runs: in training they are an input.
#pragma once

#include "layout/layout.h"
#include "sconv/product.h"

namespace qtool {

// Of y = x * w: panel column c is output channel panel.output + c, k its k-th weight of w[O][depth].
void pack_forward(ThreadPool* pool, const SconvProduct& product, const SconvKernel& kernel, const LayoutKernels& layout,
                  const float* weight, const float* bias);

// Of dx = dy * w turned around: panel column c is input channel panel.output + c of w[O][weight_taps][inputs], and k is
// (t, o) with o the output channel within the group and taps[t] the tap of w.
struct BackwardPack {
  int64_t outputs, inputs, weight_taps;  // channels of a group
  std::vector<int64_t> taps;
};
void pack_backward(ThreadPool* pool, const SconvProduct& product, const SconvKernel& kernel, const BackwardPack& pack,
                   const float* weight);

}  // namespace qtool
