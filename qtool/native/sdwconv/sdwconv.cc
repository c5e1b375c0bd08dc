#include "sdwconv/sdwconv.h"

#include <algorithm>
#include <cstring>

#include "core/rows.h"
#include "sconv/shape.h"

namespace qtool {
namespace {

constexpr Row<const SdwconvKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "sdwconv/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kChunkFloats = 16384;  // of the output: some microseconds
constexpr int64_t kLeastChunks = 8;  // where there are lines for them: threads end together

class Sdwconv final : public Op {
 public:
  Sdwconv(const qt_conv_args& args, const Row<const SdwconvKernel*>& row, Memory* memory);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return sconv_extents(args_); }
  int64_t scratch_bytes() const override { return taps_ * sizeof(float*); }

 private:
  void run_line(const RunContext& context, int64_t line, const float** input) const;
  int strip_pixels(int64_t column) const;
  void point(const float* x, int64_t line, int64_t column, const float** input) const;

  qt_conv_args args_;  // without its arrays
  Row<const SdwconvKernel*> row_;
  int64_t taps_, step_, width_;
  int64_t inner_begin_, inner_end_;  // output columns with no tap left or right of the picture
  std::vector<int64_t> offsets_;     // [taps], of a strip that sees no padding, from its first tap
  const float* zeros_;               // a strip's row outside of the picture
  const float* weight_;
  const float* bias_;
};

// The output columns, at most `count`, with column * stride + offset in low .. high.
void clip_columns(int64_t offset, int64_t stride, int64_t high, int64_t* begin, int64_t* end) {
  if (offset < 0) *begin = std::max(*begin, (-offset + stride - 1) / stride);
  *end = std::min(*end, high < offset ? 0 : (high - offset) / stride + 1);
}

Sdwconv::Sdwconv(const qt_conv_args& a, const Row<const SdwconvKernel*>& row, Memory* memory)
    : args_(a), row_(row), taps_(int64_t{a.kernel_height} * a.kernel_width),
      step_(int64_t{a.stride_width} * a.in_channels), inner_begin_(0), inner_end_(a.out_width) {
  const int64_t channels = a.in_channels, lanes = row.kernel->lanes;
  width_ = (channels + lanes - 1) / lanes * lanes;
  for (int64_t kx = 0; kx < a.kernel_width; kx++) {
    clip_columns(kx * a.dilation_width - a.pad_left, a.stride_width, a.in_width - 1, &inner_begin_, &inner_end_);
  }
  for (int64_t t = 0; t < taps_; t++) {
    const int64_t y = t / a.kernel_width * a.dilation_height, x = t % a.kernel_width * a.dilation_width;
    offsets_.push_back((y * a.in_width + x) * channels);
  }
  const int64_t strip_floats = checked_product({std::min(row.kernel->pixels, a.out_width), step_}) + channels;
  zeros_ = reinterpret_cast<const float*>(memory->allocate(strip_floats * 4));
  float* weight = reinterpret_cast<float*>(memory->allocate(taps_ * width_ * 4));
  float* bias = reinterpret_cast<float*>(memory->allocate(width_ * 4));
  for (int64_t c = 0; c < channels; c++) {
    for (int64_t t = 0; t < taps_; t++) weight[t * width_ + c] = static_cast<const float*>(a.weight)[c * taps_ + t];
  }
  if (a.bias_f32 != nullptr) std::memcpy(bias, a.bias_f32, channels * 4);
  weight_ = weight;
  bias_ = bias;
  args_.weight = args_.bias_f32 = nullptr;
}

void Sdwconv::run(const RunContext& context) const {
  const int64_t lines = int64_t{args_.batch} * args_.out_height;
  const int64_t line_floats = int64_t{args_.out_width} * args_.out_channels;
  if (lines * line_floats == 0) return;
  const int64_t lines_a_chunk = std::max<int64_t>(1, std::min(kChunkFloats / line_floats, lines / kLeastChunks));
  context.pool->parallel((lines + lines_a_chunk - 1) / lines_a_chunk, [&](int64_t chunk, int thread) {
    const float** input = reinterpret_cast<const float**>(context.scratch + thread * context.scratch_stride);
    const int64_t end = std::min(lines, (chunk + 1) * lines_a_chunk);
    for (int64_t line = chunk * lines_a_chunk; line < end; line++) run_line(context, line, input);
  });
}

// Pixels of the strip that begins at `column`: one at a time where taps leave the picture.
int Sdwconv::strip_pixels(int64_t column) const {
  if (column < inner_begin_ || column >= inner_end_) return 1;
  return static_cast<int>(std::min<int64_t>(row_.kernel->pixels, inner_end_ - column));
}

void Sdwconv::point(const float* x, int64_t line, int64_t column, const float** input) const {
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

void Sdwconv::run_line(const RunContext& context, int64_t line, const float** input) const {
  SdwconvStrip strip = {};
  strip.input = input;
  strip.taps = taps_;
  strip.step = step_;
  strip.channels = args_.out_channels;
  strip.width = width_;
  strip.weight = weight_;
  strip.bias = bias_;
  strip.low = args_.out_min_f;
  strip.high = args_.out_max_f;
  for (int64_t column = 0; column < args_.out_width; column += strip.pixels) {
    strip.pixels = strip_pixels(column);
    point(static_cast<const float*>(context.inputs[0]), line, column, input);
    const int64_t at = (line * args_.out_width + column) * args_.out_channels;
    strip.out = static_cast<float*>(context.output) + at;
    if (args_.residual != 0) strip.residual = static_cast<const float*>(context.inputs[1]) + at;
    row_.kernel->run(strip);
  }
}

}  // namespace

std::unique_ptr<Op> make_sdwconv(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_sconv(args);
  require(args.groups == args.in_channels && args.groups == args.out_channels, "the convolution is not depthwise");
  return std::make_unique<Sdwconv>(args, select_row(kRows, context), context.memory);
}

void list_sdwconv(std::vector<KernelInfo>* list) { list_rows("sdwconv", kRows, list); }

}  // namespace qtool
