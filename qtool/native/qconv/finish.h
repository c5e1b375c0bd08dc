// The way from a sum to a byte of qconv.h, in plain C++.
#pragma once

#include <cmath>

#include "qconv/qconv.h"

namespace qtool {

// `residual` is the byte of the same place, or NULL.
static inline uint8_t finish_sum(const QconvFinish& f, int32_t sum, float bias, float multiplier,
                                 const uint8_t* residual) {
  float r = (static_cast<float>(sum) + bias) * multiplier;
  if (residual != nullptr) r += (static_cast<float>(*residual) - f.res_zero) * f.res_multiplier;
  const float clamped = r > f.low ? (r < f.high ? r : f.high) : f.low;
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(clamped)) + f.out_zero);
}

}  // namespace qtool
