#include "qtileconv/place.h"

#include <algorithm>
#include <cstring>

#include "qconv/shape.h"

namespace qtool {
namespace {

constexpr int64_t kRows = 16, kStep = 64;
constexpr int64_t kGatherCycles = 3;  // to gather 64 bytes
constexpr int64_t kTileCycles = 16;   // of a product of tiles

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_dense(const qt_conv_args& a) {
  return a.kernel_height == 1 && a.kernel_width == 1 && a.stride_height == 1 && a.stride_width == 1 &&
         a.pad_top == 0 && a.pad_left == 0 && a.in_height == a.out_height && a.in_width == a.out_width;
}

// A gathered matrix has no gaps between lines, but must be written. Both walk the same steps of k.
TileSource::Kind choose_kind(const qt_conv_args& a) {
  const int64_t pixels = int64_t{a.batch} * a.out_height * a.out_width;
  if (a.in_channels % kStep != 0 || (a.in_channels / a.groups) % kStep != 0) return TileSource::kGathered;
  if (is_dense(a)) return pixels >= kRows ? TileSource::kDirect : TileSource::kGathered;
  if (a.groups > 1 || a.stride_height > 1 || a.stride_width > 1 || pixels == 0) return TileSource::kGathered;
  const int64_t width = a.out_width + int64_t{a.kernel_width - 1} * a.dilation_width;
  const int64_t height = a.out_height + int64_t{a.kernel_height - 1} * a.dilation_height;
  const bool is_mostly_padding = width > 2 * (a.in_width + kRows) || height > 2 * (a.in_height + kRows);
  if (is_mostly_padding) return TileSource::kGathered;
  const int64_t padded = a.batch * ceil_div(a.out_height * width, kRows), gathered = ceil_div(pixels, kRows);
  const int64_t lost = (padded - gathered) * ceil_div(a.out_channels, 16) * kTileCycles;
  return lost <= pixels * kGatherCycles ? TileSource::kPadded : TileSource::kGathered;
}

}  // namespace

TileSource::TileSource(const qt_conv_args& a, void (*gather)(const QtileconvGather& gather))
    : kind_(choose_kind(a)), gather_(gather), batch_(a.batch), height_(a.in_height), width_(a.in_width),
      channels_(a.in_channels), group_channels_(a.in_channels / a.groups), out_height_(a.out_height),
      out_width_(a.out_width), out_pitch_(qconv_pitch(a)), kernel_height_(a.kernel_height),
      kernel_width_(a.kernel_width), stride_height_(a.stride_height), stride_width_(a.stride_width),
      dilation_height_(a.dilation_height), dilation_width_(a.dilation_width), pad_top_(a.pad_top),
      pad_left_(a.pad_left), outside_(static_cast<uint8_t>(a.x_zero)),
      reach_height_((kernel_height_ - 1) * dilation_height_), reach_width_((kernel_width_ - 1) * dilation_width_),
      padded_width_(out_width_ + reach_width_) {
  const int64_t depth = kernel_height_ * kernel_width_ * group_channels_;
  if (kind_ == kGathered) {
    // An odd number of cache lines: rows do not meet in the same sets of the cache.
    pitch_ = (ceil_div(depth, kStep) | 1) * kStep;
    for (int64_t k = 0; k < depth; k += kStep) offsets_.push_back(k);
    const bool joined = a.groups == 1 && dilation_width_ == 1;  // a line's taps lie side by side
    run_bytes_ = joined ? kernel_width_ * channels_ : group_channels_;
    for (int64_t ky = 0; ky < kernel_height_; ky++) {
      for (int64_t kx = 0; kx < (joined ? 1 : kernel_width_); kx++) {
        runs_.push_back((ky * dilation_height_ * width_ + kx * dilation_width_) * channels_);
      }
    }
    return;
  }
  pitch_ = channels_;
  run_bytes_ = 0;
  for (int64_t k = 0; k < depth; k += kStep) {
    const int64_t tap = k / group_channels_, ky = tap / kernel_width_, kx = tap % kernel_width_;
    const int64_t pixel = ky * dilation_height_ * padded_width_ + kx * dilation_width_;
    offsets_.push_back(pixel * channels_ + k % group_channels_);
  }
}

int64_t TileSource::unit_bytes() const { return kind_ == kPadded ? padded_width_ * channels_ : pitch_; }

int64_t TileSource::tiles() const {
  if (kind_ != kPadded) return ceil_div(units(), kRows);
  int64_t count = 0;
  for (int64_t y = 0, x = 0; y < out_height_; count++) {  // as place_lines
    x += kRows;
    y += x / padded_width_;
    x %= padded_width_;
    if (x < out_width_) continue;
    x = 0;
    y++;
  }
  return batch_ * count;
}

int64_t TileSource::most_tiles(int64_t units) const {
  if (kind_ != kPadded) return ceil_div(units, kRows);
  return ceil_div(units * padded_width_, kRows) + units;  // each picture's lines may end within a tile
}

int64_t TileSource::copy_bytes(int64_t units) const {
  if (kind_ == kDirect) return 0;
  if (kind_ == kGathered) return ceil_div(units, kRows) * kRows * pitch_;
  const int64_t pictures = std::min(units, units / out_height_ + 2);
  // The last tile may be read past the last line.
  return ((units + pictures * reach_height_) * padded_width_ + kRows) * channels_;
}

int64_t TileSource::place(const uint8_t* x, int64_t begin, int64_t end, const TilePlace& place) const {
  switch (kind_) {
    case kDirect: return place_direct(x, begin, end, place);
    case kPadded: return place_padded(x, begin, end, place);
    default: return place_gathered(x, begin, end, place);
  }
}

// The last tile begins early where it would read past the end.
int64_t TileSource::place_direct(const uint8_t* x, int64_t begin, int64_t end, const TilePlace& place) const {
  int64_t count = 0;
  int64_t* output = place.outputs;
  for (int64_t at = begin; at < end; at += kRows) {
    const int64_t first = std::min(at, end - kRows);
    place.tiles[count++] = x + first * channels_;
    for (int64_t pixel = first; pixel < first + kRows; pixel++) *output++ = pixel < at ? -1 : pixel * out_pitch_;
  }
  return count;
}

int64_t TileSource::place_padded(const uint8_t* x, int64_t begin, int64_t end, const TilePlace& given) const {
  TilePlace to = given;
  int64_t count = 0;
  for (int64_t first = begin, lines; first < end; first += lines) {
    const int64_t picture = first / out_height_, y = first % out_height_;
    lines = std::min(end - first, out_height_ - y);
    copy_lines(x + picture * height_ * width_ * channels_, y - pad_top_, lines + reach_height_, to.copy);
    const int64_t tiles = place_lines(first, lines, to.copy, to);
    count += tiles;
    to.tiles += tiles;
    to.outputs += tiles * kRows;
    to.copy += (lines + reach_height_) * padded_width_ * channels_;
  }
  return count;
}

void TileSource::copy_lines(const uint8_t* image, int64_t top, int64_t lines, uint8_t* copy) const {
  const int64_t line_bytes = padded_width_ * channels_;
  const int64_t left = std::clamp<int64_t>(pad_left_, 0, padded_width_);
  const int64_t right = std::clamp<int64_t>(width_ + pad_left_, left, padded_width_);
  for (int64_t y = top; y < top + lines; y++, copy += line_bytes) {
    if (y < 0 || y >= height_) {
      std::memset(copy, outside_, static_cast<size_t>(line_bytes));
      continue;
    }
    const uint8_t* from = image + (y * width_ + left - pad_left_) * channels_;
    std::memset(copy, outside_, static_cast<size_t>(left * channels_));
    std::memcpy(copy + left * channels_, from, static_cast<size_t>((right - left) * channels_));
    std::memset(copy + right * channels_, outside_, static_cast<size_t>((padded_width_ - right) * channels_));
  }
}

// Tiles run over the ends of lines, but none begins between two lines.
int64_t TileSource::place_lines(int64_t first, int64_t lines, const uint8_t* copy, const TilePlace& place) const {
  int64_t count = 0;
  int64_t* output = place.outputs;
  for (int64_t y = 0, x = 0; y < lines;) {
    place.tiles[count++] = copy + (y * padded_width_ + x) * channels_;
    for (int64_t row = 0; row < kRows; row++, x++) {
      while (x >= padded_width_) {
        x -= padded_width_;
        y++;
      }
      *output++ = x < out_width_ && y < lines ? ((first + y) * out_width_ + x) * out_pitch_ : -1;
    }
    if (x >= out_width_) {
      x = 0;
      y++;
    }
  }
  return count;
}

int64_t TileSource::place_gathered(const uint8_t* x, int64_t begin, int64_t end, const TilePlace& place) const {
  const int64_t count = ceil_div(end - begin, kRows);
  for (int64_t t = 0; t < count; t++) place.tiles[t] = place.copy + t * kRows * pitch_;
  for (int64_t i = 0; i < count * kRows; i++) {
    place.outputs[i] = begin + i < end ? (begin + i) * out_pitch_ : -1;
  }
  uint8_t* rows = place.copy;
  for (int64_t pixel = begin, pixels; pixel < end; pixel += pixels, rows += pixels * pitch_) {
    const int64_t line = pixel / out_width_, column = pixel % out_width_;
    pixels = std::min(end - pixel, out_width_ - column);
    const uint8_t* image = x + line / out_height_ * height_ * width_ * channels_;
    gather_line(image, line % out_height_, column, pixels, rows);
  }
  return count;
}

// `count` neighbours in a line: those with all taps in the picture at once, the others one by one.
void TileSource::gather_line(const uint8_t* image, int64_t y, int64_t x, int64_t count, uint8_t* rows) const {
  const int64_t top = y * stride_height_ - pad_top_, last = width_ - 1 - reach_width_ + pad_left_;
  int64_t begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(pad_left_, 0), stride_width_), x, x + count);
  int64_t end = last < 0 ? begin : std::clamp<int64_t>(last / stride_width_ + 1, begin, x + count);
  if (top < 0 || top + reach_height_ >= height_) begin = end = x + count;
  for (int64_t i = x; i < begin; i++) gather_border(image, top, i * stride_width_ - pad_left_, rows + (i - x) * pitch_);
  const int64_t left = begin * stride_width_ - pad_left_;
  if (begin < end) {
    gather_({image + (top * width_ + left) * channels_, stride_width_ * channels_, runs_.data(),
             static_cast<int64_t>(runs_.size()), run_bytes_, rows + (begin - x) * pitch_, end - begin, pitch_});
  }
  for (int64_t i = end; i < x + count; i++) {
    gather_border(image, top, i * stride_width_ - pad_left_, rows + (i - x) * pitch_);
  }
}

void TileSource::gather_border(const uint8_t* image, int64_t top, int64_t left, uint8_t* row) const {
  const size_t bytes = static_cast<size_t>(group_channels_);
  for (int64_t ky = 0; ky < kernel_height_; ky++) {
    const int64_t y = top + ky * dilation_height_;
    for (int64_t kx = 0; kx < kernel_width_; kx++, row += bytes) {
      const int64_t x = left + kx * dilation_width_;
      if (y < 0 || y >= height_ || x < 0 || x >= width_) {
        std::memset(row, outside_, bytes);
      } else {
        std::memcpy(row, image + (y * width_ + x) * channels_, bytes);
      }
    }
  }
}

}  // namespace qtool
