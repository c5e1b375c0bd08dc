#include "qbinary/rows.h"

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

bool qbinary_arithmetic_is_sound(const qt_binary_args& a) {
  const auto is_byte = [](int value) { return value >= 0 && value <= 255; };
  if (!is_byte(a.out_zero) || !is_byte(a.out_min) || !is_byte(a.out_max) || a.out_min > a.out_max) return false;
  if (a.fixed_point != 0) return a.kind == QT_ADD && a.shift >= 0 && a.shift <= 31;
  return a.kind >= QT_ADD && a.kind <= QT_DIV && is_byte(a.a_zero) && is_byte(a.b_zero) && std::isfinite(a.a_scale) &&
         std::isfinite(a.b_scale) && std::isfinite(a.inv_scale);
}

}  // namespace qtool
