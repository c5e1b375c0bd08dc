// The weights and numbers of a quantized convolution in the layout of a kernel.
#pragma once

#include <vector>

#include "core/op.h"
#include "qconv/qconv.h"

namespace qtool {

// `taps` of `length` bytes a group's channel, each rounded up to `padded` bytes.
struct QconvDepth {
  int64_t taps, length, padded;
};

// The sum over i of w[o, t, i] for each tap t, for `output` o.
std::vector<int64_t> qconv_tap_sums(const qt_conv_args& args, const QconvDepth& depth, int64_t output);

// bias_i32[o] - x_zero * sum, modulo 2^32.
int32_t qconv_start(const qt_conv_args& args, int64_t output, int64_t sum);

// Up to kernel.columns output channels of one group.
struct QconvPanel {
  int64_t input, output;  // first channel
  int columns, vectors;
  const void* weight;
  int64_t tap_bytes;     // of the weights of one tap
  QconvRest rest;        // of a kernel with split weights
  const int32_t* start;  // [regions][width]
  const float* bias;
  const float* multiplier;
};

// All panels in order of their channels, with a start for each set of taps. Uses the arrays of `args`, which must have
// passed check_qconv.
std::vector<QconvPanel> pack_qconv(const qt_conv_args& args, const QconvDepth& depth,
                                   const std::vector<std::vector<int64_t>>& tap_sets, const QconvKernel& kernel,
                                   Memory* memory);

// The further steps that a kernel with split weights needs, over all steps of 4 bytes.
double qconv_rest_share(const qt_conv_args& args, const QconvDepth& depth, const QconvKernel& kernel);

}  // namespace qtool
