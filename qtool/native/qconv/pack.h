// The weights and numbers of a quantized convolution in the layout of a kernel.
#pragma once

#include <vector>

#include "core/op.h"
#include "qconv/qconv.h"

namespace qtool {

// bias_i32[o] - x_zero * sum over k of w[o, k], modulo 2^32, with `depth` weights a channel.
int32_t qconv_start(const qt_conv_args& args, int64_t output, int64_t depth);

// Up to kernel.columns output channels of one group.
struct QconvPanel {
  int64_t input, output;  // first channel
  int columns, vectors;
  const void* weight;
  const int32_t* start;
  const float* bias;
  const float* multiplier;
};

// `taps` of `length` bytes a group's channel, each rounded up to `padded` bytes.
struct QconvDepth {
  int64_t taps, length, padded;
};

// All panels in order of their channels. Uses the arrays of `args`, which must have passed check_qconv.
std::vector<QconvPanel> pack_qconv(const qt_conv_args& args, const QconvDepth& depth, const QconvKernel& kernel,
                                   Memory* memory);

}  // namespace qtool
