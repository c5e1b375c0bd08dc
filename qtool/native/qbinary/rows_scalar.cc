// The specification of the rows.
#include <cmath>

#include "qbinary/rows.h"

namespace qtool {
namespace {

float combine(int kind, float a, float b) {
  switch (kind) {
    case QT_ADD: return a + b;
    case QT_SUB: return a - b;
    case QT_MUL: return a * b;
    default: return a / b;
  }
}

// scale * (q - zero) with one rounding for product and sum.
float dequantized(uint8_t q, int32_t zero, float scale) {
  return std::fma(scale, static_cast<float>(q), -(scale * static_cast<float>(zero)));
}

uint8_t float_result(const qt_binary_args& p, uint8_t a, uint8_t b) {
  const float x = dequantized(a, p.a_zero, p.a_scale), y = dequantized(b, p.b_zero, p.b_scale);
  const float r = combine(p.kind, x, y) * p.inv_scale;
  const float low = static_cast<float>(p.out_min - p.out_zero), high = static_cast<float>(p.out_max - p.out_zero);
  const float clamped = r > low ? (r < high ? r : high) : low;
  return static_cast<uint8_t>(static_cast<int>(std::nearbyint(clamped)) + p.out_zero);
}

// s / 2^shift, half away from zero: the bits shifted out are compared with a half; a negative tie stays where the
// arithmetic shift took it.
int32_t rounding_shift(int32_t s, int shift) {
  const int32_t mask = static_cast<int32_t>((uint32_t{1} << shift) - 1);
  const int32_t rest = (s & mask) - (s < 0 ? 1 : 0);
  return (s >> shift) + (rest > (mask >> 1) ? 1 : 0);
}

uint8_t fixed_result(const qt_binary_args& p, uint8_t a, uint8_t b) {
  const uint32_t s = static_cast<uint32_t>(p.a_multiplier) * a + static_cast<uint32_t>(p.b_multiplier) * b +
                     static_cast<uint32_t>(p.offset);
  const int64_t q = int64_t{rounding_shift(static_cast<int32_t>(s), p.shift)} + p.out_zero;
  return static_cast<uint8_t>(q < p.out_min ? p.out_min : (q > p.out_max ? p.out_max : q));
}

}  // namespace

void qbinary_rows_scalar(const qt_binary_args& args, const QbinaryBlock& block) {
  for (int64_t r = 0; r < block.rows; r++) {
    const uint8_t* a = block.a + r * block.a_pitch;
    const uint8_t* b = block.b + r * block.b_pitch;
    uint8_t* out = block.out + r * block.out_pitch;
    for (int64_t c = 0; c < block.columns; c++) {
      out[c] = args.fixed_point != 0 ? fixed_result(args, a[c], b[c]) : float_result(args, a[c], b[c]);
    }
  }
}

}  // namespace qtool
