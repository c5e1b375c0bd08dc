// Batched products of two float32 activations with the tiles of the float convolution.
//
//   y[n, m, o] = scale * (sum over k of a[n, m, k] * b[n, k, o]) + mask[n, m, o]
//
// Operands are read where they lie, by strides: a transposed or permuted one is no copy. A panel of b (up to
// kernel.columns of its columns, all of k) is packed by the thread that multiplies with it, times `scale`; of a only what
// is not contiguous along k. Every sum is one chain of additions in the order of k, as in sconv.h.
#pragma once

#include <memory>

#include "core/op.h"
#include "core/rows.h"
#include "sconv/sconv.h"

namespace qtool {

std::unique_ptr<Op> make_smatmul(const qt_matmul_args& args, const Row<const SconvKernel*>& row);

}  // namespace qtool
