// The indirection of a float convolution: where each tap of each output pixel finds its input floats.
#pragma once

#include "core/op.h"

namespace qtool {

class SconvPixels {
 public:
  SconvPixels(const qt_conv_args& args, Memory* memory);

  int64_t taps() const { return taps_; }      // pointers a pixel
  int64_t length() const { return length_; }  // floats a tap (of all groups)
  // Floats of copies that `fill` may need a pixel.
  int64_t patch_floats() const { return joined_ ? taps_ * length_ : 0; }

  // Writes pointers[tap * stride + r] for r in 0..rows-1 and the output pixels first, first + 1, ... of input x.
  // Taps that lie partly outside are copied to *patch, which moves on.
  void fill(const float* x, int64_t first, int rows, int stride, const float** pointers, float** patch) const;

 private:
  void fill_edge(const float* image, int64_t top, int64_t left, int stride, const float** pointers,
                 float** patch) const;
  const float* joined_tap(const float* row, int64_t column, float** patch) const;

  int64_t height_, width_, channels_;
  int64_t out_height_, out_width_;
  int64_t kernel_height_, kernel_width_, stride_height_, stride_width_;
  int64_t pad_top_, pad_left_, dilation_height_, dilation_width_;
  bool dense_;   // the pixels are the rows of a matrix: a 1x1 kernel without strides and padding
  bool joined_;  // a tap is a row of the kernel: with few channels a pixel alone is too short to walk
  int64_t taps_, length_;
  std::vector<int64_t> offsets_;  // [taps], of a pixel that sees no padding, from its first tap
  int64_t span_height_, span_width_;  // of the rows and columns that a pixel sees
  const float* zeros_;  // what taps outside of the picture see
};

}  // namespace qtool
