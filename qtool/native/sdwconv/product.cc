#include "sdwconv/product.h"

#include <algorithm>
#include <cstring>

namespace qtool {
namespace {

constexpr int64_t kChunkFloats = 16384;  // of the output: some microseconds
constexpr int64_t kLeastChunks = 8;      // where there are lines for them: threads end together

// The output columns, at most `count`, with column * stride + offset in low .. high.
void clip_columns(int64_t offset, int64_t stride, int64_t high, int64_t* begin, int64_t* end) {
  if (offset < 0) *begin = std::max(*begin, (-offset + stride - 1) / stride);
  *end = std::min(*end, high < offset ? 0 : (high - offset) / stride + 1);
}

}  // namespace

struct SdwconvProduct::Job {
  const float* x;
  const float* residual;
  float* out;
};

SdwconvProduct::SdwconvProduct(const qt_conv_args& a, const SdwconvKernel& kernel, Memory* memory,
                               const SconvPlace* place)
    : args_(a), kernel_(kernel), dense_(place == nullptr), taps_(int64_t{a.kernel_height} * a.kernel_width),
      step_(int64_t{a.stride_width} * a.in_channels), inner_begin_(0), inner_end_(a.out_width) {
  if (place != nullptr) place_ = *place;
  const int64_t channels = a.in_channels, lanes = kernel.lanes;
  width_ = (channels + lanes - 1) / lanes * lanes;
  for (int64_t kx = 0; kx < a.kernel_width; kx++) {
    clip_columns(kx * a.dilation_width - a.pad_left, a.stride_width, a.in_width - 1, &inner_begin_, &inner_end_);
  }
  for (int64_t t = 0; t < taps_; t++) {
    const int64_t y = t / a.kernel_width * a.dilation_height, x = t % a.kernel_width * a.dilation_width;
    offsets_.push_back((y * a.in_width + x) * channels);
  }
  const int64_t strip_floats = checked_product({std::min(kernel.pixels, a.out_width), step_}) + channels;
  zeros_ = reinterpret_cast<const float*>(memory->allocate(strip_floats * 4));
  weight_ = reinterpret_cast<float*>(memory->allocate(taps_ * width_ * 4));
  bias_ = reinterpret_cast<float*>(memory->allocate(width_ * 4));
  args_.weight = args_.bias_f32 = nullptr;
}

// The pointers, and a line that has yet to find its place.
int64_t SdwconvProduct::scratch_bytes() const {
  return pointer_bytes() + (dense_ ? 0 : checked_product({args_.out_width, args_.out_channels, 4}));
}

void SdwconvProduct::run(const RunContext& context, const float* x, const float* residual, float* out) const {
  const int64_t lines = int64_t{args_.batch} * args_.out_height;
  const int64_t line_floats = int64_t{args_.out_width} * args_.out_channels;
  if (lines * line_floats == 0) return;
  const Job job = {x, residual, out};
  const int64_t lines_a_chunk = std::max<int64_t>(1, std::min(kChunkFloats / line_floats, lines / kLeastChunks));
  context.pool->parallel((lines + lines_a_chunk - 1) / lines_a_chunk, [&](int64_t chunk, int thread) {
    uint8_t* scratch = context.scratch + thread * context.scratch_stride;
    const int64_t end = std::min(lines, (chunk + 1) * lines_a_chunk);
    for (int64_t line = chunk * lines_a_chunk; line < end; line++) run_line(job, line, scratch);
  });
}

// Pixels of the strip that begins at `column`: one at a time where taps leave the picture.
int SdwconvProduct::strip_pixels(int64_t column) const {
  if (column < inner_begin_ || column >= inner_end_) return 1;
  return static_cast<int>(std::min<int64_t>(kernel_.pixels, inner_end_ - column));
}

void SdwconvProduct::point(const float* x, int64_t line, int64_t column, const float** input) const {
  const int64_t top = line % args_.out_height * args_.stride_height - args_.pad_top;
  const int64_t left = column * args_.stride_width - args_.pad_left;
  const float* image = x + line / args_.out_height * args_.in_height * args_.in_width * args_.in_channels;
  const bool whole = top >= 0 && top + (args_.kernel_height - 1) * int64_t{args_.dilation_height} < args_.in_height;
  if (whole && column >= inner_begin_ && column < inner_end_) {
    const float* pixel = image + (top * args_.in_width + left) * args_.in_channels;
    for (int64_t t = 0; t < taps_; t++) input[t] = pixel + offsets_[t];
    return;
  }
  for (int ky = 0; ky < args_.kernel_height; ky++) {
    const int64_t y = top + int64_t{ky} * args_.dilation_height;
    const bool inside = y >= 0 && y < args_.in_height;
    for (int kx = 0; kx < args_.kernel_width; kx++) {
      const int64_t at = left + int64_t{kx} * args_.dilation_width;
      const bool seen = inside && at >= 0 && at < args_.in_width;
      *input++ = seen ? image + (y * args_.in_width + at) * args_.in_channels : zeros_;
    }
  }
}

void SdwconvProduct::run_line(const Job& job, int64_t line, uint8_t* scratch) const {
  const float** input = reinterpret_cast<const float**>(scratch);
  const int64_t channels = args_.out_channels, start = line * args_.out_width * channels;
  float* out = dense_ ? job.out + start : reinterpret_cast<float*>(scratch + pointer_bytes());
  SdwconvStrip strip = {};
  strip.input = input;
  strip.taps = taps_;
  strip.step = step_;
  strip.channels = channels;
  strip.width = width_;
  strip.weight = weight_;
  strip.bias = bias_;
  strip.low = args_.out_min_f;
  strip.high = args_.out_max_f;
  for (int64_t column = 0; column < args_.out_width; column += strip.pixels) {
    strip.pixels = strip_pixels(column);
    point(job.x, line, column, input);
    strip.out = out + column * channels;
    if (job.residual != nullptr) strip.residual = job.residual + start + column * channels;
    kernel_.run(strip);
  }
  if (dense_) return;
  float* to = job.out + line / args_.out_height * place_.image + line % args_.out_height * place_.line;
  for (int64_t x = 0; x < args_.out_width; x++) std::memcpy(to + x * place_.pixel, out + x * channels, channels * 4);
}

}  // namespace qtool
