#include "qconv/pixels.h"

#include <algorithm>
#include <cstring>

namespace qtool {
namespace {

constexpr int kFewChannels = 16;

bool is_dense(const qt_conv_args& a) {
  const bool one = a.kernel_height == 1 && a.kernel_width == 1 && a.stride_height == 1 && a.stride_width == 1;
  return one && a.pad_top == 0 && a.pad_left == 0 && a.in_height == a.out_height && a.in_width == a.out_width;
}

const uint8_t* filled(int64_t bytes, int value, Memory* memory) {
  uint8_t* row = memory->allocate(bytes);
  std::memset(row, value, bytes);
  return row;
}

}  // namespace

QconvPixels::QconvPixels(const qt_conv_args& a, Memory* memory)
    : height_(a.in_height), width_(a.in_width), channels_(a.in_channels),
      out_height_(a.out_height), out_width_(a.out_width),
      kernel_height_(a.kernel_height), kernel_width_(a.kernel_width),
      stride_height_(a.stride_height), stride_width_(a.stride_width),
      pad_top_(a.pad_top), pad_left_(a.pad_left),
      dilation_height_(a.dilation_height), dilation_width_(a.dilation_width),
      dense_(is_dense(a)),
      joined_(a.kernel_width > 1 && a.dilation_width == 1 && a.groups == 1 && a.in_channels <= kFewChannels),
      taps_(joined_ ? kernel_height_ : kernel_height_ * kernel_width_),
      length_(joined_ ? kernel_width_ * channels_ : channels_),
      outside_(filled(length_, a.x_zero, memory)) {}

const uint8_t* QconvPixels::joined_tap(const uint8_t* row, int64_t column, uint8_t** patch) const {
  if (column >= 0 && column + kernel_width_ <= width_) return row + column * channels_;
  const int64_t from = std::clamp<int64_t>(-column, 0, kernel_width_);
  const int64_t to = std::clamp<int64_t>(width_ - column, from, kernel_width_);
  uint8_t* copy = *patch;
  *patch += length_;
  std::memcpy(copy, outside_, length_);
  if (from < to) std::memcpy(copy + from * channels_, row + (column + from) * channels_, (to - from) * channels_);
  return copy;
}

void QconvPixels::fill(const uint8_t* x, int64_t first, int rows, int stride, const uint8_t** pointers,
                       uint8_t** patch) const {
  if (dense_) {
    for (int r = 0; r < rows; r++) pointers[r] = x + (first + r) * channels_;
    return;
  }
  int64_t x_out = first % out_width_, y_out = first / out_width_ % out_height_;
  const uint8_t* image = x + first / out_width_ / out_height_ * height_ * width_ * channels_;
  for (int r = 0; r < rows; r++) {
    fill_pixel(image, y_out * stride_height_ - pad_top_, x_out * stride_width_ - pad_left_, stride, pointers + r, patch);
    if (++x_out < out_width_) continue;
    x_out = 0;
    if (++y_out < out_height_) continue;
    y_out = 0;
    image += height_ * width_ * channels_;
  }
}

void QconvPixels::fill_pixel(const uint8_t* image, int64_t top, int64_t left, int stride, const uint8_t** pointers,
                             uint8_t** patch) const {
  const uint64_t width = static_cast<uint64_t>(width_);
  for (int64_t ky = 0, y = top; ky < kernel_height_; ky++, y += dilation_height_) {
    const bool inside = y >= 0 && y < height_;
    const uint8_t* row = image + (inside ? y * width_ * channels_ : 0);
    if (joined_) {
      *pointers = inside ? joined_tap(row, left, patch) : outside_;
      pointers += stride;
      continue;
    }
    for (int64_t kx = 0, column = left; kx < kernel_width_; kx++, column += dilation_width_, pointers += stride) {
      *pointers = inside && static_cast<uint64_t>(column) < width ? row + column * channels_ : outside_;
    }
  }
}

}  // namespace qtool
