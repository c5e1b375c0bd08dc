#include "qconv/shape.h"

#include <cmath>

#include "qbinary/rows.h"

namespace qtool {
namespace {

constexpr int kMost = 1 << 28;  // of strides, paddings and dilations: sums of products of two stay below 2^63

bool in_range(int value, int low) { return value >= low && value <= kMost; }

bool is_byte(int value) { return value >= 0 && value <= 255; }

void check_sizes(const qt_conv_args& a) {
  for (const int size : {a.batch, a.in_height, a.in_width, a.out_height, a.out_width}) {
    require(size >= 0, "a size of the picture is negative");
  }
  for (const int size : {a.in_channels, a.out_channels, a.groups, a.kernel_height, a.kernel_width, a.stride_height,
                         a.stride_width, a.dilation_height, a.dilation_width}) {
    require(in_range(size, 1), "channels, groups, kernel, strides and dilations must be in 1..2^28");
  }
  require(in_range(a.pad_top, -kMost) && in_range(a.pad_left, -kMost), "a padding is out of range");
  require(a.in_channels % a.groups == 0 && a.out_channels % a.groups == 0, "groups must divide the channels");
  checked_product({a.out_channels, a.kernel_height, a.kernel_width, a.in_channels / a.groups});
}

// No r can be infinite or NaN, whatever the sum.
void check_numbers(const qt_conv_args& a) {
  constexpr double kMostSum = 2147483648.0, kMostResult = 1e38;
  for (int o = 0; o < a.out_channels; o++) {
    const double bias = a.bias_f32 != nullptr ? a.bias_f32[o] : 0.0;
    const double most = (kMostSum + std::fabs(bias)) * std::fabs(double{a.multiplier[o]});
    require(most < kMostResult, "a multiplier or bias is not finite, or too large");  // false for NaN, too
  }
  if (a.residual != 1) return;
  require(256.0 * std::fabs(double{a.res_multiplier}) < kMostResult, "the residual's multiplier is not finite");
}

}  // namespace

void check_qconv(const qt_conv_args& a) {
  check_sizes(a);
  require(a.weight != nullptr && a.multiplier != nullptr, "the weight or the multipliers are missing");
  require(is_byte(a.x_zero) && is_byte(a.out_zero), "a zero point is not in 0..255");
  require(is_byte(a.out_min) && is_byte(a.out_max) && a.out_min <= a.out_max, "the bounds are not in 0..255");
  require(a.residual >= 0 && a.residual <= 2, "a residual is 0, 1 or 2");
  if (a.residual == 1) require(is_byte(a.res_zero), "the residual's zero point is not in 0..255");
  if (a.residual == 2) {
    require(a.add != nullptr && qbinary_arithmetic_is_sound(*a.add), "the arithmetic of the residual is not sound");
  }
  check_numbers(a);
  qconv_extents(a);
}

Extents qconv_extents(const qt_conv_args& a) {
  const int64_t in = checked_product({a.batch, a.in_height, a.in_width, a.in_channels});
  const int64_t out = checked_product({a.batch, a.out_height, a.out_width, a.out_channels});
  return {a.residual != 0 ? 2 : 1, {in, out}, out};
}

QconvFinish qconv_finish(const qt_conv_args& a) {
  const float low = static_cast<float>(a.out_min - a.out_zero), high = static_cast<float>(a.out_max - a.out_zero);
  return {a.out_zero, a.out_min, a.out_max, low, high, static_cast<float>(a.res_zero), a.res_multiplier};
}

bool is_depthwise(const qt_conv_args& a) {
  return a.groups > 1 && a.groups == a.in_channels && a.groups == a.out_channels;
}

}  // namespace qtool
