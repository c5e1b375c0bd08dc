// The weights and numbers of a quantized convolution as Winograd's kernels take them.
#pragma once

#include <vector>

#include "core/op.h"
#include "qwinograd/qwinograd.h"

namespace qtool {

// Whether all sums stay, whatever the input is, within what the kernel can tell apart: |sum| < 2^(31 - shift). Walks
// the weights of `args`, which must have passed check_qconv and have the family's shape.
bool qwinograd_is_exact(const qt_conv_args& args, int shift);

// All panels of `columns` channels in their order.
std::vector<QwinogradPanel> pack_qwinograd(const qt_conv_args& args, int columns, Memory* memory);

}  // namespace qtool
