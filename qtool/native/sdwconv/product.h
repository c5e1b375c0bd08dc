// A depthwise float convolution, whoever packs its weights: see sdwconv.h for the formula.
#pragma once

#include "core/op.h"
#include "sconv/product.h"
#include "sdwconv/sdwconv.h"

namespace qtool {

class SdwconvProduct {
 public:
  // Of a checked description, whose arrays are not read. Without a `place` the output is dense.
  SdwconvProduct(const qt_conv_args& args, const SdwconvKernel& kernel, Memory* memory,
                 const SconvPlace* place = nullptr);

  int64_t taps() const { return taps_; }
  int64_t width() const { return width_; }
  float* weight() const { return weight_; }  // [taps][width], zero until it is packed
  float* bias() const { return bias_; }      // [width], likewise
  int64_t scratch_bytes() const;             // a thread
  // `residual` may be NULL.
  void run(const RunContext& context, const float* x, const float* residual, float* out) const;

 private:
  struct Job;
  void run_line(const Job& job, int64_t line, uint8_t* scratch) const;
  int strip_pixels(int64_t column) const;
  void point(const float* x, int64_t line, int64_t column, const float** input) const;
  int64_t pointer_bytes() const { return (taps_ * static_cast<int64_t>(sizeof(float*)) + 63) / 64 * 64; }

  qt_conv_args args_;  // without its arrays
  const SdwconvKernel& kernel_;
  SconvPlace place_;
  bool dense_;
  int64_t taps_, step_, width_;
  int64_t inner_begin_, inner_end_;  // output columns with no tap left or right of the picture
  std::vector<int64_t> offsets_;     // [taps], of a strip that sees no padding, from its first tap
  const float* zeros_;               // a strip's row outside of the picture
  float* weight_;
  float* bias_;
};

}  // namespace qtool
