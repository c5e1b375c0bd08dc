// The checked description of a quantized convolution, shared by its kernel families.
#pragma once

#include "core/op.h"
#include "qconv/qconv.h"

namespace qtool {

// Throws InvalidPlan unless every size and number is sound and the arrays are there. No other code checks them.
void check_qconv(const qt_conv_args& args);

// Bytes of the input, of the residual where there is one, and of the output.
Extents qconv_extents(const qt_conv_args& args);

// Bytes from an output pixel to the next.
int64_t qconv_pitch(const qt_conv_args& args);

QconvFinish qconv_finish(const qt_conv_args& args);

// Whether tiles of 16 pixels x 64 bytes of k x 16 channels have enough in them to be faster than vectors: the family
// qtileconv's, where the instruction set has them.
bool fills_tiles(const qt_conv_args& args);

}  // namespace qtool
