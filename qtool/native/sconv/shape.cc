#include "sconv/shape.h"

namespace qtool {
namespace {

constexpr int kMost = 1 << 28;  // of strides, paddings and dilations: sums of products of two stay below 2^63

bool in_range(int value, int low) { return value >= low && value <= kMost; }

}  // namespace

void check_sconv_shape(const qt_conv_args& a) {
  for (const int size : {a.batch, a.in_height, a.in_width, a.out_height, a.out_width}) {
    require(size >= 0, "a size of the picture is negative");
  }
  for (const int size : {a.in_channels, a.out_channels, a.groups, a.kernel_height, a.kernel_width, a.stride_height,
                         a.stride_width, a.dilation_height, a.dilation_width}) {
    require(in_range(size, 1), "channels, groups, kernel, strides and dilations must be in 1..2^28");
  }
  require(in_range(a.pad_top, -kMost) && in_range(a.pad_left, -kMost), "a padding is out of range");
  require(a.in_channels % a.groups == 0 && a.out_channels % a.groups == 0, "groups must divide the channels");
  require(a.residual == 0 || a.residual == 1, "a float convolution has residual 0 or 1");
  require(a.out_pitch == 0 && a.out_offset == 0, "the output of a float convolution must be dense");
  checked_product({a.out_channels, a.kernel_height, a.kernel_width, a.in_channels / a.groups});
  sconv_extents(a);
}

void check_sconv(const qt_conv_args& a) {
  check_sconv_shape(a);
  require(a.weight != nullptr, "the weight is missing");
}

bool is_depthwise(const qt_conv_args& a) {
  return a.groups > 1 && a.groups == a.in_channels && a.groups == a.out_channels;
}

Extents sconv_extents(const qt_conv_args& a) {
  const int64_t in = checked_product({a.batch, a.in_height, a.in_width, a.in_channels, 4});
  const int64_t out = checked_product({a.batch, a.out_height, a.out_width, a.out_channels, 4});
  return {a.residual != 0 ? 2 : 1, {in, out}, out};
}

}  // namespace qtool
