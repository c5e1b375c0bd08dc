// Transpositions for x86 with AVX2; the AVX-512 row uses them too (they wait for memory, not for arithmetic).
#pragma once

#include "layout/layout.h"

namespace qtool {

void transpose8_avx2(const uint8_t* x, int64_t x_stride, uint8_t* y, int64_t y_stride, int64_t rows, int64_t cols);
void transpose32_avx2(const uint32_t* x, int64_t x_stride, uint32_t* y, int64_t y_stride, int64_t rows, int64_t cols);

}  // namespace qtool
