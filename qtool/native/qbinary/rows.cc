#include "qbinary/rows.h"

#include <algorithm>
#include <cmath>

namespace qtool {

QbinaryRows qbinary_rows(int isa) {
#if QT_X86
  if (isa >= QT_ISA_AVX512VNNI) return qbinary_rows_avx512vnni;
  if (isa >= QT_ISA_AVX2) return qbinary_rows_avx2;
#endif
  (void)isa;
  return qbinary_rows_scalar;
}

bool qbinary_fits(const qt_binary_args& a) {
  const auto reach = [](double scale, int zero) { return std::abs(scale) * std::max(zero, 255 - zero); };
  const double x = reach(a.a_scale, a.a_zero), y = reach(a.b_scale, a.b_zero);
  const double combined = a.kind == QT_MUL ? x * y : x + y;
  const double r = combined * std::abs(static_cast<double>(a.inv_scale));
  return a.kind != QT_DIV && x < 1e30 && y < 1e30 && combined < 1e30 && r < 1e9;  // with room for the roundings
}

bool qbinary_arithmetic_is_sound(const qt_binary_args& a) {
  const auto is_byte = [](int value) { return value >= 0 && value <= 255; };
  if (!is_byte(a.out_zero) || !is_byte(a.out_min) || !is_byte(a.out_max) || a.out_min > a.out_max) return false;
  if (a.fixed_point != 0) return a.kind == QT_ADD && a.shift >= 0 && a.shift <= 31;
  return a.kind >= QT_ADD && a.kind <= QT_DIV && is_byte(a.a_zero) && is_byte(a.b_zero) && std::isfinite(a.a_scale) &&
         std::isfinite(a.b_scale) && std::isfinite(a.inv_scale);
}

}  // namespace qtool
