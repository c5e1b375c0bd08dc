// The indirection of a quantized convolution: where each tap of each output pixel finds its input bytes.
#pragma once

#include "core/op.h"

namespace qtool {

class QconvPixels {
 public:
  QconvPixels(const qt_conv_args& args, Memory* memory);

  int64_t taps() const { return taps_; }      // pointers a pixel
  int64_t length() const { return length_; }  // bytes a tap (of all groups)
  // Bytes of copies that `fill` may need a pixel.
  int64_t patch_bytes() const { return joined_ ? taps_ * length_ : 0; }

  // Writes pointers[tap * stride + r] for r in 0..rows-1 and the output pixels first, first + 1, ... of input x.
  // Taps that lie partly outside are copied to *patch, which moves on.
  void fill(const uint8_t* x, int64_t first, int rows, int stride, const uint8_t** pointers, uint8_t** patch) const;

 private:
  void fill_pixel(const uint8_t* image, int64_t top, int64_t left, int stride, const uint8_t** pointers,
                  uint8_t** patch) const;
  const uint8_t* joined_tap(const uint8_t* row, int64_t column, uint8_t** patch) const;

  int64_t height_, width_, channels_;
  int64_t out_height_, out_width_;
  int64_t kernel_height_, kernel_width_, stride_height_, stride_width_;
  int64_t pad_top_, pad_left_, dilation_height_, dilation_width_;
  bool dense_;   // the pixels are the rows of a matrix: a 1x1 kernel without strides and padding
  bool joined_;  // a tap is a row of the kernel: with few channels a pixel alone is too short to walk
  int64_t taps_, length_;
  const uint8_t* outside_;  // what taps outside of the picture see
};

}  // namespace qtool
