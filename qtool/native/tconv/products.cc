#include "tconv/products.h"

#include <algorithm>
#include <cstring>

#include "sdwconv/product.h"

namespace qtool {
namespace {

constexpr int64_t kChunkFloats = 8192;  // of the weights

// Panels of w[O][depth]: column c is output channel panel.output + c, k its k-th weight.
class Forward : public TconvProduct {
 public:
  Forward(const qt_conv_args& args, const TconvRows& rows, const SconvPlace* place)
      : product_(args, *rows.product.kernel, rows.memory, place), kernel_(*rows.product.kernel), layout_(*rows.layout) {}

  int64_t scratch_bytes() const override { return product_.scratch_bytes(); }

  void run(const RunContext& context, const float* x, float* out) const override {
    product_.run(context, x, nullptr, out);
  }

  void pack(ThreadPool* pool, const float* weight, const float* bias) const override {
    const int64_t depth = product_.depth();
    each_part(pool, [&](const SconvPanel& panel, int64_t first, int64_t count) {
      const float* from = weight + panel.output * depth + first;
      layout_.transpose32(reinterpret_cast<const uint32_t*>(from), depth,
                          reinterpret_cast<uint32_t*>(panel.weight + first * width(panel)), width(panel), panel.columns,
                          count);
      if (first == 0 && bias != nullptr) std::memcpy(panel.bias, bias + panel.output, panel.columns * 4);
    });
  }

 protected:
  int64_t width(const SconvPanel& panel) const { return int64_t{panel.vectors} * kernel_.step; }

  // Calls f(panel, k of the first, how many k) for parts of all panels, on all threads.
  template <class F>
  void each_part(ThreadPool* pool, const F& f) const {
    const int64_t depth = product_.depth(), most = std::max<int64_t>(1, kChunkFloats / kernel_.columns);
    const int64_t parts = (depth + most - 1) / most;
    pool->parallel(parts * static_cast<int64_t>(product_.panels().size()), [&](int64_t chunk, int) {
      const int64_t first = chunk % parts * most;
      f(product_.panels()[chunk / parts], first, std::min(most, depth - first));
    });
  }

 private:
  SconvProduct product_;
  const SconvKernel& kernel_;
  const LayoutKernels& layout_;
};

// Column c is input channel panel.output + c, k is (t, o) with o the output channel within the group.
class TurnedAround final : public Forward {
 public:
  TurnedAround(const qt_conv_args& args, const Turned& turned, const SconvPlace* place, const TconvRows& rows)
      : Forward(args, rows, place), turned_(turned), inputs_(args.out_channels / args.groups),
        outputs_(args.in_channels / args.groups) {}

  void pack(ThreadPool* pool, const float* weight, const float*) const override {
    each_part(pool, [&](const SconvPanel& panel, int64_t first, int64_t count) {
      const int64_t group = panel.output / inputs_;
      const float* from = weight + group * outputs_ * turned_.weight_taps * inputs_ + panel.output % inputs_;
      for (int64_t k = first; k < first + count; k++) {
        const int64_t row = k % outputs_ * turned_.weight_taps + turned_.taps[k / outputs_];
        std::memcpy(panel.weight + k * width(panel), from + row * inputs_, panel.columns * 4);
      }
    });
  }

 private:
  Turned turned_;
  int64_t inputs_, outputs_;  // channels of a group
};

class Depthwise final : public TconvProduct {
 public:
  Depthwise(const qt_conv_args& args, const Turned& turned, const SconvPlace* place, const TconvRows& rows)
      : product_(args, *rows.depthwise.kernel, rows.memory, place), channels_(args.in_channels), turned_(turned) {}

  int64_t scratch_bytes() const override { return product_.scratch_bytes(); }

  void run(const RunContext& context, const float* x, float* out) const override {
    product_.run(context, x, nullptr, out);
  }

  void pack(ThreadPool* pool, const float* weight, const float* bias) const override {
    const int64_t taps = product_.taps(), most = std::max<int64_t>(1, kChunkFloats / taps);
    pool->parallel((channels_ + most - 1) / most, [&](int64_t chunk, int) {
      for (int64_t c = chunk * most; c < std::min(channels_, (chunk + 1) * most); c++) {
        const float* from = weight + c * turned_.weight_taps;
        for (int64_t t = 0; t < taps; t++) product_.weight()[t * product_.width() + c] = from[turned_.taps[t]];
      }
    });
    if (bias != nullptr) std::memcpy(product_.bias(), bias, channels_ * 4);
  }

 private:
  SdwconvProduct product_;
  int64_t channels_;
  Turned turned_;
};

}  // namespace

std::unique_ptr<TconvProduct> make_forward_product(const qt_conv_args& args, const TconvRows& rows) {
  if (rows.depthwise.kernel == nullptr) return std::make_unique<Forward>(args, rows, nullptr);
  Turned straight = {int64_t{args.kernel_height} * args.kernel_width, {}};
  for (int64_t t = 0; t < straight.weight_taps; t++) straight.taps.push_back(t);
  return std::make_unique<Depthwise>(args, straight, nullptr, rows);
}

std::unique_ptr<TconvProduct> make_turned_product(const qt_conv_args& args, const Turned& turned,
                                                  const SconvPlace* place, const TconvRows& rows) {
  if (rows.depthwise.kernel == nullptr) return std::make_unique<TurnedAround>(args, turned, place, rows);
  return std::make_unique<Depthwise>(args, turned, place, rows);
}

}  // namespace qtool
