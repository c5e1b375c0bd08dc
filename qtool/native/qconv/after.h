// What follows a convolution's own rounding, on bytes that are still in the cache: the sum with a second quantized
// tensor (residual 2), then a table.
#pragma once

#include "core/op.h"

namespace qtool {

class QconvAfter {
 public:
  QconvAfter(const qt_conv_args& args, int isa);

  bool is_needed() const { return adds_ || maps_; }

  // Row r, column c of both is at [r * pitch + c]; residual is not read unless the description has residual 2.
  void run(uint8_t* out, const uint8_t* residual, int64_t rows, int64_t columns, int64_t pitch) const;

 private:
  bool adds_, maps_;
  int isa_;
  qt_binary_args add_ = {};
  uint8_t table_[256];
};

}  // namespace qtool
