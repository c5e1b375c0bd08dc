#include "qlinear_dynamic/params.h"

#include <cmath>

namespace qtool {
namespace {

constexpr float kSmallScale = 6.1e-5f;  // smaller ones are raised to this: their products leave FP16's normal range

}  // namespace

QuantParams choose_params(float low, float high, bool reduce_range) {
  const int qmax = reduce_range ? 127 : 255;
  double scale = (double{high} - low) / qmax;
  const float single = static_cast<float>(scale);
  if (single == 0.0f || std::isinf(1.0f / single)) scale = 0.1;
  if (scale < kSmallScale) {
    const float amplifier = kSmallScale / static_cast<float>(scale);
    scale = kSmallScale;
    if (low == 0.0f) {
      high = kSmallScale * qmax;
    } else if (high == 0.0f) {
      low = -kSmallScale * qmax;
    } else {
      low *= amplifier;
      high *= amplifier;
    }
  }
  // From the end of the range where the zero point has the smaller rounding error.
  const double from_low = -(low / scale), from_high = qmax - high / scale;
  const double low_error = -std::fabs(low / scale), high_error = qmax - std::fabs(high / scale);
  const double zero = low_error < high_error ? from_low : from_high;
  if (!(zero > 0)) return {static_cast<float>(scale), 0};
  return {static_cast<float>(scale), zero > qmax ? qmax : static_cast<int32_t>(std::nearbyint(zero))};
}

}  // namespace qtool
