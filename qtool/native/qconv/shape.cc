#include "qconv/shape.h"

#include <cmath>
#include <cstdint>

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

void check_place(const qt_conv_args& a) {
  if (a.out_pitch == 0 && a.out_offset == 0) return;
  require(a.out_pitch >= a.out_channels && a.out_offset >= 0, "pixels of the output overlap, or begin before it");
  require(a.residual == 0, "a residual lies as the output does, which then must be dense");
}

// The largest magnitude that r can have, whatever the sums are; NaN or infinite where a number is.
double most_result(const qt_conv_args& a) {
  double most = 0;
  for (int o = 0; o < a.out_channels; o++) {
    const double sum = 2147483648.0 + (a.bias_f32 != nullptr ? std::fabs(double{a.bias_f32[o]}) : 0.0);
    const double here = sum * std::fabs(double{a.multiplier[o]});
    if (!(here <= most)) most = here;  // so that a NaN stays
    if (std::isnan(most)) return most;
  }
  return most + (a.residual == 1 ? 256.0 * std::fabs(double{a.res_multiplier}) : 0.0);
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
  check_place(a);
  require(most_result(a) < 1e38, "a multiplier or a bias is not finite, or too large");  // no r is infinite or NaN
  qconv_extents(a);
}

Extents qconv_extents(const qt_conv_args& a) {
  const int64_t in = checked_product({a.batch, a.in_height, a.in_width, a.in_channels});
  const int64_t pixels = checked_product({a.batch, a.out_height, a.out_width});
  const int64_t out = checked_product({pixels, a.out_channels});
  if (a.residual != 0 || pixels == 0) return {a.residual != 0 ? 2 : 1, {in, out}, out};
  // The last pixel ends before the next one would begin.
  const int64_t all = checked_product({pixels, qconv_pitch(a)}) - (qconv_pitch(a) - a.out_channels);
  require(a.out_offset <= INT64_MAX - all, "sizes are too large");
  return {1, {in, 0}, a.out_offset + all};
}

int64_t qconv_pitch(const qt_conv_args& a) { return a.out_pitch != 0 ? a.out_pitch : a.out_channels; }

QconvFinish qconv_finish(const qt_conv_args& a) {
  const float low = static_cast<float>(a.out_min - a.out_zero), high = static_cast<float>(a.out_max - a.out_zero);
  return {a.out_zero, a.out_min, a.out_max, low, high, static_cast<float>(a.res_zero), a.res_multiplier,
          most_result(a) < 2147483000.0};
}

// A tile's product has 5 to 6 times the multiplications of vectors in the same time, used or not. With k up to 32 both
// are as fast, and what lies around the products is dearer for tiles.
bool fills_tiles(const qt_conv_args& a) {
  const int64_t pixels = int64_t{a.batch} * a.out_height * a.out_width, channels = a.out_channels / a.groups;
  const int64_t depth = int64_t{a.kernel_height} * a.kernel_width * (a.in_channels / a.groups);
  if (pixels <= 8 || depth <= 32) return false;
  const auto used = [](int64_t size, int64_t of) {
    return static_cast<double>(size) / static_cast<double>((size + of - 1) / of * of);
  };
  return used(pixels, 16) * used(channels, 16) * used(depth, 64) > 1.0 / 3;
}

}  // namespace qtool
