// QMATMUL: a product of two matrices of bytes, both packed on the fly as numbers less their zero points.
#pragma once

#include <memory>

#include "core/op.h"
#include "qrows/qrows.h"

namespace qtool {

std::unique_ptr<Op> make_product(const qt_matmul_args& args, const QrowsKernels& kernels, const char* name);

}  // namespace qtool
