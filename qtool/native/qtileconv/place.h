// Where the tiles of a quantized convolution find their rows of the input.
#pragma once

#include "core/op.h"
#include "qtileconv/qtileconv.h"

namespace qtool {

// Where `place` writes to, for the units it is given.
struct TilePlace {
  const uint8_t** tiles;  // [tiles]
  int64_t* outputs;       // [tiles][16]
  uint8_t* copy;          // [copy_bytes]
};

// Of one group. Its units are lines of the output (padded) or pixels, counted over the batch.
class TileSource {
 public:
  TileSource(const qt_conv_args& args, void (*gather)(const QtileconvGather& gather));

  enum Kind { kDirect, kPadded, kGathered };
  Kind kind() const { return kind_; }
  int64_t units() const { return kind_ == kPadded ? batch_ * out_height_ : batch_ * out_height_ * out_width_; }
  int64_t pixels_a_unit() const { return kind_ == kPadded ? out_width_ : 1; }
  int64_t unit_bytes() const;                   // of a, about
  int64_t pitch() const { return pitch_; }      // from one row of a tile to the next
  const std::vector<int64_t>& offsets() const { return offsets_; }  // of the steps
  int64_t tiles() const;  // of all units, placed at once
  int64_t most_tiles(int64_t units) const;
  int64_t copy_bytes(int64_t units) const;

  // Makes the tiles of units begin .. end - 1 of input x (of the group's first channel); returns their number. At least
  // 16 units at once where they are direct.
  int64_t place(const uint8_t* x, int64_t begin, int64_t end, const TilePlace& place) const;

 private:
  int64_t place_direct(const uint8_t* x, int64_t begin, int64_t end, const TilePlace& place) const;
  int64_t place_padded(const uint8_t* x, int64_t begin, int64_t end, const TilePlace& place) const;
  int64_t place_gathered(const uint8_t* x, int64_t begin, int64_t end, const TilePlace& place) const;
  void copy_lines(const uint8_t* image, int64_t top, int64_t lines, uint8_t* copy) const;
  int64_t place_lines(int64_t first, int64_t lines, const uint8_t* copy, const TilePlace& place) const;
  void gather_line(const uint8_t* image, int64_t y, int64_t x, int64_t count, uint8_t* rows) const;
  void gather_border(const uint8_t* image, int64_t top, int64_t left, uint8_t* row) const;

  Kind kind_;
  void (*gather_)(const QtileconvGather& gather);
  int64_t batch_, height_, width_, channels_, group_channels_, out_height_, out_width_, out_pitch_;
  int64_t kernel_height_, kernel_width_, stride_height_, stride_width_, dilation_height_, dilation_width_;
  int64_t pad_top_, pad_left_;
  uint8_t outside_;
  int64_t reach_height_, reach_width_;  // from the first tap to the last
  int64_t padded_width_;                // of a line of the padded copy, in pixels
  int64_t pitch_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> runs_;  // gathered: where the pieces of a row lie from the first tap on
  int64_t run_bytes_;
};

}  // namespace qtool
