#include "sconv/pixels.h"

#include <cstring>

namespace qtool {
namespace {

constexpr int kFewChannels = 16;

bool is_dense(const qt_conv_args& a) {
  const bool one = a.kernel_height == 1 && a.kernel_width == 1 && a.stride_height == 1 && a.stride_width == 1;
  return one && a.pad_top == 0 && a.pad_left == 0 && a.in_height == a.out_height && a.in_width == a.out_width;
}

}  // namespace

SconvPixels::SconvPixels(const qt_conv_args& a, Memory* memory)
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
      span_height_((kernel_height_ - 1) * dilation_height_ + 1),
      span_width_((kernel_width_ - 1) * dilation_width_ + 1),
      zeros_(reinterpret_cast<const float*>(memory->allocate(length_ * 4))) {
  const int64_t across = taps_ / kernel_height_;
  for (int64_t tap = 0; tap < taps_; tap++) {
    const int64_t y = tap / across * dilation_height_, x = tap % across * dilation_width_;
    offsets_.push_back((y * width_ + x) * channels_);
  }
}

const float* SconvPixels::joined_tap(const float* row, int64_t column, float** patch) const {
  if (column >= 0 && column + kernel_width_ <= width_) return row + column * channels_;
  float* copy = *patch;
  *patch += length_;
  for (int64_t x = 0; x < kernel_width_; x++) {
    const bool inside = column + x >= 0 && column + x < width_;
    const float* from = inside ? row + (column + x) * channels_ : zeros_;
    std::memcpy(copy + x * channels_, from, channels_ * 4);
  }
  return copy;
}

void SconvPixels::fill(const float* x, int64_t first, int rows, int stride, const float** pointers,
                       float** patch) const {
  if (dense_) {
    for (int r = 0; r < rows; r++) pointers[r] = x + (first + r) * channels_;
    return;
  }
  int64_t x_out = first % out_width_, y_out = first / out_width_ % out_height_;
  const float* image = x + first / out_width_ / out_height_ * height_ * width_ * channels_;
  for (int r = 0; r < rows; r++) {
    const int64_t top = y_out * stride_height_ - pad_top_, left = x_out * stride_width_ - pad_left_;
    if (top >= 0 && left >= 0 && top + span_height_ <= height_ && left + span_width_ <= width_) {
      const float* pixel = image + (top * width_ + left) * channels_;
      for (int64_t tap = 0; tap < taps_; tap++) pointers[tap * stride + r] = pixel + offsets_[tap];
    } else {
      fill_edge(image, top, left, stride, pointers + r, patch);
    }
    if (++x_out < out_width_) continue;
    x_out = 0;
    if (++y_out < out_height_) continue;
    y_out = 0;
    image += height_ * width_ * channels_;
  }
}

void SconvPixels::fill_edge(const float* image, int64_t top, int64_t left, int stride, const float** pointers,
                            float** patch) const {
  for (int64_t ky = 0, y = top; ky < kernel_height_; ky++, y += dilation_height_) {
    const bool inside = y >= 0 && y < height_;
    const float* row = image + (inside ? y * width_ * channels_ : 0);
    if (joined_) {
      *pointers = inside ? joined_tap(row, left, patch) : zeros_;
      pointers += stride;
      continue;
    }
    for (int64_t kx = 0, column = left; kx < kernel_width_; kx++, column += dilation_width_, pointers += stride) {
      *pointers = inside && column >= 0 && column < width_ ? row + column * channels_ : zeros_;
    }
  }
}

}  // namespace qtool
