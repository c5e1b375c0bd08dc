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

bool is_joined(const qt_conv_args& a) {
  return a.kernel_width > 1 && a.dilation_width == 1 && a.groups == 1 && a.in_channels < kFewChannels;
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
      inner_height_(std::max<int64_t>(0, height_ - (kernel_height_ - 1) * dilation_height_)),
      inner_width_(std::max<int64_t>(0, width_ - (kernel_width_ - 1) * dilation_width_)),
      dense_(is_dense(a)), joined_(is_joined(a)),
      taps_(joined_ ? kernel_height_ : kernel_height_ * kernel_width_),
      length_(joined_ ? kernel_width_ * channels_ : channels_),
      zeros_(taps_, 0), outside_(filled(length_, a.x_zero, memory)) {
  const int64_t columns = taps_ / kernel_height_;
  for (int64_t t = 0; t < taps_; t++) {
    const int64_t y = t / columns * dilation_height_, x = t % columns * dilation_width_;
    offsets_.push_back((y * width_ + x) * channels_);
  }
}

QconvPixels::Place QconvPixels::place(const uint8_t* x, int64_t pixel) const {
  if (dense_) return {x + pixel * channels_, 0, 0};
  const int64_t line = pixel / out_width_, image = line / out_height_;
  return {x + image * height_ * width_ * channels_, line % out_height_, pixel % out_width_};
}

void QconvPixels::advance(Place* place, int64_t pixels) const {
  place->x += pixels;
  if (place->x < out_width_) return;
  place->x = 0;
  if (++place->y < out_height_) return;
  place->y = 0;
  place->image += height_ * width_ * channels_;
}

// Whether no tap of that many neighbours in a line lies outside of the picture.
bool QconvPixels::are_inside(const Place& place, int64_t pixels) const {
  const int64_t top = place.y * stride_height_ - pad_top_, left = place.x * stride_width_ - pad_left_;
  const int64_t last = left + (pixels - 1) * stride_width_;
  return top >= 0 && top < inner_height_ && left >= 0 && last < inner_width_;
}

const uint8_t* QconvPixels::first_tap(const Place& place) const {
  const int64_t top = place.y * stride_height_ - pad_top_, left = place.x * stride_width_ - pad_left_;
  return place.image + (top * width_ + left) * channels_;
}

int64_t QconvPixels::fill(Place* place, int rows, int stride, const uint8_t** pointers, uint8_t** patch) const {
  if (dense_) {
    for (int r = 0; r < rows; r++, place->image += channels_) pointers[r] = place->image;
    return 0;
  }
  Place at = *place;
  if (fill_inside(place, rows, pointers)) return 0;
  for (int r = 0; r < rows; r++, advance(&at, 1)) {
    if (!are_inside(at, 1)) {
      fill_border(at, stride, pointers + r, patch);
      continue;
    }
    const uint8_t* tap = first_tap(at);
    for (int64_t t = 0; t < taps_; t++) pointers[t * stride + r] = tap + offsets_[t];
  }
  *place = at;
  return stride;
}

// Fills a pointer a pixel and moves on, but gives up at the first pixel with a tap outside of the picture.
bool QconvPixels::fill_inside(Place* place, int rows, const uint8_t** pointers) const {
  for (int r = 0; r < rows;) {
    const int end = static_cast<int>(std::min<int64_t>(rows, r + out_width_ - place->x));
    if (!are_inside(*place, end - r)) return false;
    const uint8_t* tap = first_tap(*place);
    advance(place, end - r);
    for (; r < end; r++, tap += stride_width_ * channels_) pointers[r] = tap;
  }
  return true;
}

void QconvPixels::fill_border(const Place& place, int stride, const uint8_t** pointers, uint8_t** patch) const {
  const int64_t left = place.x * stride_width_ - pad_left_, columns = taps_ / kernel_height_;
  int64_t y = place.y * stride_height_ - pad_top_;
  for (int64_t ky = 0; ky < kernel_height_; ky++, y += dilation_height_, pointers += columns * stride) {
    const bool inside = y >= 0 && y < height_;
    const uint8_t* row = place.image + (inside ? y * width_ * channels_ : 0);
    if (joined_) {
      *pointers = inside ? joined_tap(row, left, patch) : outside_;
      continue;
    }
    for (int64_t kx = 0, x = left; kx < kernel_width_; kx++, x += dilation_width_) {
      pointers[kx * stride] = inside && x >= 0 && x < width_ ? row + x * channels_ : outside_;
    }
  }
}

const uint8_t* QconvPixels::joined_tap(const uint8_t* row, int64_t left, uint8_t** patch) const {
  const int64_t from = std::clamp<int64_t>(-left, 0, kernel_width_);
  const int64_t to = std::clamp<int64_t>(width_ - left, from, kernel_width_);
  if (from == 0 && to == kernel_width_) return row + left * channels_;
  uint8_t* copy = *patch;
  *patch += length_;
  std::memset(copy, *outside_, length_);
  if (from < to) std::memcpy(copy + from * channels_, row + (left + from) * channels_, (to - from) * channels_);
  return copy;
}

}  // namespace qtool
