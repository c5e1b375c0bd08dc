// The gradient of the input. Input pixels whose coordinates have the same remainders by the strides see the same taps at
// the same distances: for each such phase the gradient is a convolution of dy with stride 1 and those taps turned around.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "sconv/shape.h"
#include "tconv/products.h"

namespace qtool {
namespace {

// One axis of a phase: pixels first, first + stride, ... and the taps that they see, in the order of dy.
struct Axis {
  int64_t first, count, pad, dilation;
  std::vector<int64_t> taps;
};

// Pixel h = first + stride * i and tap k meet y = (h + pad - k * dilation) / stride = i - pad' + j * dilation' where that
// is whole, with j counting the phase's taps from the last one down.
std::vector<Axis> cut_axis(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  std::vector<Axis> axes;
  for (int64_t first = 0; first < std::min(stride, size); first++) {
    Axis axis = {first, (size - first + stride - 1) / stride, 0, 1, {}};
    for (int64_t k = kernel - 1; k >= 0; k--) {
      if ((first + pad - k * dilation) % stride == 0) axis.taps.push_back(k);
    }
    if (!axis.taps.empty()) axis.pad = -(first + pad - axis.taps[0] * dilation) / stride;
    if (axis.taps.size() > 1) axis.dilation = (axis.taps[0] - axis.taps[1]) * dilation / stride;
    require(std::abs(axis.pad) <= 1 << 30 && axis.dilation <= 1 << 30, "the kernel is too large for a gradient");
    axes.push_back(axis);
  }
  return axes;
}

struct Phase {
  std::unique_ptr<TconvProduct> product;
  int64_t offset;  // of its first pixel in dx
};

class InputGrad final : public Op {
 public:
  InputGrad(const qt_conv_args& args, const TconvRows& rows) : args_(args), rows_(rows) {
    args_.weight = args_.bias_f32 = nullptr;
    const qt_conv_args& a = args_;
    const std::vector<Axis> down = cut_axis(a.in_height, a.kernel_height, a.stride_height, a.pad_top, a.dilation_height);
    const std::vector<Axis> across = cut_axis(a.in_width, a.kernel_width, a.stride_width, a.pad_left, a.dilation_width);
    for (const Axis& y : down) {
      for (const Axis& x : across) add_phase(y, x);
    }
  }

  const char* kernel() const override { return rows_.name(); }

  Extents extents() const override {
    const Extents forward = sconv_extents(args_);
    const int64_t weight = checked_product({args_.out_channels, args_.kernel_height, args_.kernel_width, inputs(), 4});
    return {2, {forward.output, weight}, forward.inputs[0]};
  }

  int64_t scratch_bytes() const override {
    int64_t most = 0;
    for (const Phase& phase : phases_) most = std::max(most, phase.product->scratch_bytes());
    return most;
  }

  void run(const RunContext& context) const override {
    const float* const* in = reinterpret_cast<const float* const*>(context.inputs);
    float* out = static_cast<float*>(context.output);
    if (gaps_) clear(context.pool, out);
    for (const Phase& phase : phases_) {
      phase.product->pack(context.pool, in[1], nullptr);
      phase.product->run(context, in[0], out + phase.offset);
    }
  }

 private:
  int64_t inputs() const { return args_.in_channels / args_.groups; }

  void add_phase(const Axis& y, const Axis& x) {
    if (y.taps.empty() || x.taps.empty()) {
      gaps_ = true;
      return;
    }
    const qt_conv_args& a = args_;
    qt_conv_args p = {};
    p.batch = a.batch;
    p.in_height = a.out_height;
    p.in_width = a.out_width;
    p.in_channels = a.out_channels;
    p.out_height = static_cast<int32_t>(y.count);
    p.out_width = static_cast<int32_t>(x.count);
    p.out_channels = a.in_channels;
    p.kernel_height = static_cast<int32_t>(y.taps.size());
    p.kernel_width = static_cast<int32_t>(x.taps.size());
    p.stride_height = p.stride_width = 1;
    p.pad_top = static_cast<int32_t>(y.pad);
    p.pad_left = static_cast<int32_t>(x.pad);
    p.dilation_height = static_cast<int32_t>(y.dilation);
    p.dilation_width = static_cast<int32_t>(x.dilation);
    p.groups = a.groups;
    p.out_min_f = -INFINITY;
    p.out_max_f = INFINITY;
    Turned turned = {int64_t{a.kernel_height} * a.kernel_width, {}};
    for (const int64_t ky : y.taps) {
      for (const int64_t kx : x.taps) turned.taps.push_back(ky * a.kernel_width + kx);
    }
    const int64_t pixel = a.in_channels, line = a.in_width * pixel;
    const SconvPlace place = {a.in_height * line, a.stride_height * line, a.stride_width * pixel};
    const bool dense = a.stride_height == 1 && a.stride_width == 1;
    phases_.push_back({make_turned_product(p, turned, dense ? nullptr : &place, rows_), y.first * line + x.first * pixel});
  }

  void clear(ThreadPool* pool, float* out) const {  // what no tap sees
    const int64_t image = int64_t{args_.in_height} * args_.in_width * args_.in_channels;
    pool->parallel(args_.batch, [&](int64_t n, int) { std::memset(out + n * image, 0, image * 4); });
  }

  qt_conv_args args_;
  TconvRows rows_;
  std::vector<Phase> phases_;
  bool gaps_ = false;  // some pixels see no tap
};

}  // namespace

std::unique_ptr<Op> make_input_grad(const qt_conv_args& args, const TconvRows& rows) {
  return std::make_unique<InputGrad>(args, rows);
}

}  // namespace qtool
