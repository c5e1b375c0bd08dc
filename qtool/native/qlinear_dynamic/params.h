// Scale and zero point of an unsigned 8-bit tensor from its range.
#pragma once

#include <cstdint>

namespace qtool {

struct QuantParams {
  float scale;
  int32_t zero;
};

// PyTorch's quant_utils::ChooseQuantizationParams (aten/src/ATen/native/quantized/cpu/QuantUtils.h) with qmin 0 and
// qmax 255, or 127 when the range is reduced, in its own mixture of float and double. low <= 0 <= high.
QuantParams choose_params(float low, float high, bool reduce_range);

}  // namespace qtool
