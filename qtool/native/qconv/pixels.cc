#include "qconv/pixels.h"

#include <algorithm>
#include <cstring>

#include "qconv/shape.h"

namespace qtool {
namespace {

constexpr int kFewChannels = 16;

// A 1x1 kernel without strides and padding.
bool is_dense(const qt_conv_args& a) {
  const bool one = a.kernel_height == 1 && a.kernel_width == 1 && a.stride_height == 1 && a.stride_width == 1;
  return one && a.pad_top == 0 && a.pad_left == 0 && a.in_height == a.out_height && a.in_width == a.out_width;
}

}  // namespace

bool has_joined_taps(const qt_conv_args& a) {
  return a.kernel_width > 1 && a.dilation_width == 1 && a.groups == 1 && a.in_channels < kFewChannels;
}

QconvPixels::QconvPixels(const qt_conv_args& a, const QconvRegion& region, const uint8_t* outside)
    : region_(region), batch_(a.batch), height_(a.in_height), width_(a.in_width), channels_(a.in_channels),
      out_height_(a.out_height), out_width_(a.out_width), pitch_(qconv_pitch(a)),
      stride_height_(a.stride_height), stride_width_(a.stride_width),
      dilation_height_(a.dilation_height), dilation_width_(a.dilation_width),
      top_(region.top * stride_height_ - a.pad_top + region.ky * dilation_height_),
      left_(region.left * stride_width_ - a.pad_left + region.kx * dilation_width_),
      inner_height_(std::max<int64_t>(0, height_ - (region.kernel_height - 1) * dilation_height_)),
      inner_width_(std::max<int64_t>(0, width_ - (region.kernel_width - 1) * dilation_width_)),
      dense_(is_dense(a)), joined_(has_joined_taps(a)),
      taps_(joined_ ? region.kernel_height : region.kernel_height * region.kernel_width),
      length_(joined_ ? region.kernel_width * channels_ : channels_),
      zeros_(taps_, 0), outside_(outside) {
  const int64_t columns = taps_ / region.kernel_height;
  for (int64_t t = 0; t < taps_; t++) {
    const int64_t y = t / columns * dilation_height_, x = t % columns * dilation_width_;
    offsets_.push_back((y * width_ + x) * channels_);
  }
}

QconvPixels::Place QconvPixels::place(const uint8_t* x, int64_t pixel) const {
  if (dense_) return {x + pixel * channels_, 0, 0, pixel * pitch_};
  const int64_t line = pixel / region_.width, image = line / region_.height;
  const int64_t y = line % region_.height, column = pixel % region_.width;
  const int64_t output = (image * out_height_ + region_.top + y) * out_width_ + region_.left + column;
  return {x + image * height_ * width_ * channels_, y, column, output * pitch_};
}

void QconvPixels::advance(Place* place, int64_t pixels) const {
  place->x += pixels;
  place->output += pixels * pitch_;
  if (place->x < region_.width) return;
  place->x = 0;
  place->output += (out_width_ - region_.width) * pitch_;
  if (++place->y < region_.height) return;
  place->y = 0;
  place->output += (out_height_ - region_.height) * out_width_ * pitch_;
  place->image += height_ * width_ * channels_;
}

// Whether no tap of that many neighbours in a line lies outside of the picture.
bool QconvPixels::are_inside(const Place& place, int64_t pixels) const {
  const int64_t top = place.y * stride_height_ + top_, left = place.x * stride_width_ + left_;
  const int64_t last = left + (pixels - 1) * stride_width_;
  return top >= 0 && top < inner_height_ && left >= 0 && last < inner_width_;
}

const uint8_t* QconvPixels::first_tap(const Place& place) const {
  const int64_t top = place.y * stride_height_ + top_, left = place.x * stride_width_ + left_;
  return place.image + (top * width_ + left) * channels_;
}

int64_t QconvPixels::fill(Place* place, int rows, int stride, const uint8_t** pointers, int64_t* outputs,
                          uint8_t** patch) const {
  if (dense_) {
    const uint8_t* pixel = place->image;
    const int64_t output = place->output, channels = channels_, pitch = pitch_;
    for (int r = 0; r < rows; r++) pointers[r] = pixel + r * channels;
    for (int r = 0; r < rows; r++) outputs[r] = output + r * pitch;
    place->image += rows * channels;
    place->output += rows * pitch;
    return 0;
  }
  Place at = *place;
  if (fill_inside(place, rows, pointers, outputs)) return 0;
  for (int r = 0; r < rows; r++, advance(&at, 1)) {
    outputs[r] = at.output;
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
bool QconvPixels::fill_inside(Place* place, int rows, const uint8_t** pointers, int64_t* outputs) const {
  for (int r = 0; r < rows;) {
    const int end = static_cast<int>(std::min<int64_t>(rows, r + region_.width - place->x));
    if (!are_inside(*place, end - r)) return false;
    const uint8_t* tap = first_tap(*place);
    const int64_t output = place->output, step = stride_width_ * channels_, pitch = pitch_;
    advance(place, end - r);
    for (int i = 0; i < end - r; i++) pointers[r + i] = tap + i * step;
    for (int i = 0; i < end - r; i++) outputs[r + i] = output + i * pitch;
    r = end;
  }
  return true;
}

void QconvPixels::fill_border(const Place& place, int stride, const uint8_t** pointers, uint8_t** patch) const {
  const int64_t left = place.x * stride_width_ + left_, columns = taps_ / region_.kernel_height;
  int64_t y = place.y * stride_height_ + top_;
  for (int64_t ky = 0; ky < region_.kernel_height; ky++, y += dilation_height_, pointers += columns * stride) {
    const bool inside = y >= 0 && y < height_;
    const uint8_t* row = place.image + (inside ? y * width_ * channels_ : 0);
    if (joined_) {
      *pointers = inside ? joined_tap(row, left, patch) : outside_;
      continue;
    }
    for (int64_t kx = 0, x = left; kx < region_.kernel_width; kx++, x += dilation_width_) {
      pointers[kx * stride] = inside && x >= 0 && x < width_ ? row + x * channels_ : outside_;
    }
  }
}

const uint8_t* QconvPixels::joined_tap(const uint8_t* row, int64_t left, uint8_t** patch) const {
  const int64_t columns = region_.kernel_width;
  const int64_t from = std::clamp<int64_t>(-left, 0, columns), to = std::clamp<int64_t>(width_ - left, from, columns);
  if (from == 0 && to == columns) return row + left * channels_;
  uint8_t* copy = *patch;
  *patch += length_;
  std::memset(copy, *outside_, length_);
  if (from < to) std::memcpy(copy + from * channels_, row + (left + from) * channels_, (to - from) * channels_);
  return copy;
}

}  // namespace qtool
