// The gradient of depthwise weights: for every line of output pixels and every tap, the products of the pixels that the
// tap sees are added to its sums. Lines are cut in parts by the shape alone, and the parts are added in their order.
#include "tconv/depthwise.h"

#include <algorithm>
#include <cstring>

#include "sconv/shape.h"
#include "tconv/tconv.h"

namespace qtool {
namespace {

constexpr Row<DepthwiseKernel> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, name},
#include "tconv/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kParts = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class DepthwiseGrad final : public Op {
 public:
  DepthwiseGrad(const qt_conv_args& args, const Row<DepthwiseKernel>& row, Memory* memory)
      : args_(args), row_(row), channels_(args.in_channels), lines_(int64_t{args.batch} * args.out_height),
        taps_(checked_product({args.kernel_height, args.kernel_width})), parts_(std::min(kParts, lines_)) {
    args_.weight = args_.bias_f32 = nullptr;
    sums_ = reinterpret_cast<float*>(memory->allocate(checked_product({std::max<int64_t>(1, parts_), taps_, channels_, 4})));
  }

  const char* kernel() const override { return row_.name; }

  Extents extents() const override {
    const Extents forward = sconv_extents(args_);
    return {2, {forward.inputs[0], forward.output}, checked_product({taps_, channels_, 4})};
  }

  void run(const RunContext& context) const override {
    context.pool->parallel(parts_, [&](int64_t part, int) {
      std::memset(sums(part), 0, taps_ * channels_ * 4);
      const int64_t end = lines_ * (part + 1) / parts_;
      for (int64_t line = lines_ * part / parts_; line < end; line++) add_line(context, line, sums(part));
    });
    float* dw = static_cast<float*>(context.output);
    for (int64_t c = 0; c < channels_; c++) {
      for (int64_t t = 0; t < taps_; t++) {
        float sum = 0;
        for (int64_t part = 0; part < parts_; part++) sum += sums(part)[t * channels_ + c];
        dw[c * taps_ + t] = sum;
      }
    }
  }

 private:
  float* sums(int64_t part) const { return sums_ + part * taps_ * channels_; }  // [taps][channels]

  void add_line(const RunContext& context, int64_t line, float* sums) const {
    const qt_conv_args& a = args_;
    const int64_t image = line / a.out_height, y = line % a.out_height;
    for (int64_t ky = 0; ky < a.kernel_height; ky++) {
      const int64_t from = y * a.stride_height - a.pad_top + ky * a.dilation_height;
      if (from < 0 || from >= a.in_height) continue;
      const float* x = static_cast<const float*>(context.inputs[0]) + (image * a.in_height + from) * a.in_width * channels_;
      const float* dy = static_cast<const float*>(context.inputs[1]) + line * a.out_width * channels_;
      for (int64_t kx = 0; kx < a.kernel_width; kx++) add_tap(x, dy, kx, sums + (ky * a.kernel_width + kx) * channels_);
    }
  }

  // Of the output pixels whose tap lies inside of the line x.
  void add_tap(const float* x, const float* dy, int64_t kx, float* sum) const {
    const int64_t stride = args_.stride_width, left = kx * args_.dilation_width - args_.pad_left;
    const int64_t begin = left >= 0 ? 0 : ceil_div(-left, stride);
    const int64_t end = left >= args_.in_width ? 0 : ceil_div(args_.in_width - left, stride);
    const int64_t count = std::min<int64_t>(end, args_.out_width) - begin;
    if (count <= 0) return;
    row_.kernel({x + (left + begin * stride) * channels_, dy + begin * channels_, count, channels_, stride * channels_, sum});
  }

  qt_conv_args args_;  // without its arrays
  Row<DepthwiseKernel> row_;
  int64_t channels_, lines_, taps_, parts_;
  float* sums_;
};

}  // namespace

std::unique_ptr<Op> make_depthwise_grad(const qt_conv_args& args, const MakeContext& context) {
  return std::make_unique<DepthwiseGrad>(args, select_row(kRows, context), context.memory);
}

void list_tconv(std::vector<KernelInfo>* list) { list_rows("tconv", kRows, list); }

}  // namespace qtool
