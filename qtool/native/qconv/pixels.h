// The indirection of a quantized convolution: where each tap of each output pixel finds its input bytes.
#pragma once

#include "core/op.h"
#include "qconv/regions.h"

namespace qtool {

// Whether a tap is a row of the kernel, not a pixel: with few channels a pixel alone is too short to walk.
bool has_joined_taps(const qt_conv_args& args);

// Of one region. Its pixels are counted over the batch: (n, y, x).
class QconvPixels {
 public:
  // `outside` is what taps outside of the picture see, as long as a tap.
  QconvPixels(const qt_conv_args& args, const QconvRegion& region, const uint8_t* outside);

  int64_t pixels() const { return batch_ * region_.height * region_.width; }
  int64_t taps() const { return taps_; }  // pointers a pixel
  // Bytes that `fill` may copy a pixel.
  int64_t patch_bytes() const { return joined_ ? taps_ * length_ : 0; }

  struct Place {
    const uint8_t* image;
    int64_t y, x;    // in the region
    int64_t output;  // byte of the whole output
  };
  Place place(const uint8_t* x, int64_t pixel) const;  // of that pixel, for input x

  // Writes where the `rows` pixels from *place on find their input, and returns `step`: tap t of pixel r is at
  // pointers[t * step + r] + offsets(step)[t]. `step` is 0 where no tap lies outside of the picture (so that `rows`
  // pointers are enough), and `stride` otherwise. Taps that lie partly outside are copied to *patch. Writes where the
  // pixels begin in the output, too. *place and *patch move on.
  int64_t fill(Place* place, int rows, int stride, const uint8_t** pointers, int64_t* outputs, uint8_t** patch) const;
  const int64_t* offsets(int64_t step) const { return step == 0 ? offsets_.data() : zeros_.data(); }

 private:
  void advance(Place* place, int64_t pixels) const;  // within the line, or to the next
  bool are_inside(const Place& place, int64_t pixels) const;
  const uint8_t* first_tap(const Place& place) const;
  bool fill_inside(Place* place, int rows, const uint8_t** pointers, int64_t* outputs) const;
  void fill_border(const Place& place, int stride, const uint8_t** pointers, uint8_t** patch) const;
  const uint8_t* joined_tap(const uint8_t* row, int64_t left, uint8_t** patch) const;

  QconvRegion region_;
  int64_t batch_, height_, width_, channels_, out_height_, out_width_, pitch_;
  int64_t stride_height_, stride_width_, dilation_height_, dilation_width_;
  int64_t top_, left_;                    // of the first tap of the region's first pixel
  int64_t inner_height_, inner_width_;    // where a pixel's first tap may lie so that all are inside
  bool dense_;                            // the pixels are the rows of a matrix
  bool joined_;
  int64_t taps_, length_;                 // length: bytes of a tap, of all groups
  std::vector<int64_t> offsets_, zeros_;  // [taps], from a pixel's first tap
  const uint8_t* outside_;
};

}  // namespace qtool
