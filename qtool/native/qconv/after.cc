#include "qconv/after.h"

#include <cstring>

#include "qbinary/rows.h"

namespace qtool {

QconvAfter::QconvAfter(const qt_conv_args& args, int isa)
    : adds_(args.residual == 2), maps_(args.lut != nullptr), isa_(isa) {
  if (adds_) add_ = *args.add;
  if (maps_) std::memcpy(table_, args.lut, sizeof(table_));
}

void QconvAfter::run(uint8_t* out, const uint8_t* residual, int64_t rows, int64_t columns, int64_t pitch) const {
  if (adds_) qbinary_rows(isa_)(add_, {out, residual, out, pitch, pitch, pitch, rows, columns});
  if (!maps_) return;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < columns; c++) out[r * pitch + c] = table_[out[r * pitch + c]];
  }
}

}  // namespace qtool
