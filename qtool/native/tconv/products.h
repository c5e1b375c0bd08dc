// Products whose weights are packed at each run: those of sconv, and of sdwconv where every channel is by itself.
#pragma once

#include "sconv/product.h"
#include "tconv/tconv.h"

namespace qtool {

class TconvProduct {
 public:
  virtual ~TconvProduct() = default;
  // On all threads, to memory of the product.
  virtual void pack(ThreadPool* pool, const float* weight, const float* bias) const = 0;  // `bias` may be NULL
  virtual void run(const RunContext& context, const float* x, float* out) const = 0;
  virtual int64_t scratch_bytes() const = 0;  // a thread
};

// y = x * w of weight [O][KH][KW][I].
std::unique_ptr<TconvProduct> make_forward_product(const qt_conv_args& args, const TconvRows& rows);

// dx = dy * w turned around, with args of that convolution: its tap t is taps[t] of the `weight_taps` taps of w [O][..][I].
struct Turned {
  int64_t weight_taps;
  std::vector<int64_t> taps;
};
std::unique_ptr<TconvProduct> make_turned_product(const qt_conv_args& args, const Turned& turned,
                                                  const SconvPlace* place, const TconvRows& rows);

}  // namespace qtool
