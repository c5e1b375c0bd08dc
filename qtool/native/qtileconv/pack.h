// The weights and numbers of a quantized convolution in the layout of tiles.
#pragma once

#include <vector>

#include "core/op.h"
#include "qtileconv/qtileconv.h"

namespace qtool {

// All panels of 4 / row_tiles * 16 channels, in order of their channels. Uses the arrays of `args`, which must have
// passed check_qconv.
std::vector<QtileconvPanel> pack_qtileconv(const qt_conv_args& args, int row_tiles, Memory* memory);

}  // namespace qtool
