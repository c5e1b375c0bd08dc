// The indirection of a quantized convolution: where each tap of each output pixel finds its input bytes.
#pragma once

#include "core/op.h"

namespace qtool {

class QconvPixels {
 public:
  QconvPixels(const qt_conv_args& args, Memory* memory);

  int64_t taps() const { return taps_; }      // pointers a pixel
  int64_t length() const { return length_; }  // bytes a tap (of all groups)
  // Bytes that `fill` may copy a pixel.
  int64_t patch_bytes() const { return joined_ ? taps_ * length_ : 0; }

  struct Place {
    const uint8_t* image;
    int64_t y, x;  // of the output
  };
  Place place(const uint8_t* x, int64_t pixel) const;  // of that output pixel, for input x

  // Writes where the `rows` output pixels from *place on find their input, and returns `step`: tap t of pixel r is at
  // pointers[t * step + r] + offsets(step)[t]. `step` is 0 where no tap lies outside of the picture (so that `rows`
  // pointers are enough), and `stride` otherwise. Taps that lie partly outside are copied to *patch. *place and *patch
  // move on.
  int64_t fill(Place* place, int rows, int stride, const uint8_t** pointers, uint8_t** patch) const;
  const int64_t* offsets(int64_t step) const { return step == 0 ? offsets_.data() : zeros_.data(); }

 private:
  void advance(Place* place, int64_t pixels) const;  // within the line, or to the next
  bool are_inside(const Place& place, int64_t pixels) const;
  const uint8_t* first_tap(const Place& place) const;
  bool fill_inside(Place* place, int rows, const uint8_t** pointers) const;
  void fill_border(const Place& place, int stride, const uint8_t** pointers, uint8_t** patch) const;
  const uint8_t* joined_tap(const uint8_t* row, int64_t left, uint8_t** patch) const;

  int64_t height_, width_, channels_;
  int64_t out_height_, out_width_;
  int64_t kernel_height_, kernel_width_, stride_height_, stride_width_;
  int64_t pad_top_, pad_left_, dilation_height_, dilation_width_;
  int64_t inner_height_, inner_width_;  // where a pixel's first tap may lie so that all are inside
  bool dense_;   // the pixels are the rows of a matrix: a 1x1 kernel without strides and padding
  bool joined_;  // a tap is a row of the kernel: with few channels a pixel alone is too short to walk
  int64_t taps_, length_;
  std::vector<int64_t> offsets_, zeros_;  // [taps], from a pixel's first tap
  const uint8_t* outside_;                // what taps outside of the picture see
};

}  // namespace qtool
