// The checked shape of a float convolution, shared by its kernel families.
#pragma once

#include "core/op.h"

namespace qtool {

// Throws InvalidPlan unless every size is sound. No other code checks them.
void check_sconv_shape(const qt_conv_args& args);

// And unless the arrays are there.
void check_sconv(const qt_conv_args& args);

// Bytes of the input, of the residual where there is one, and of the output.
Extents sconv_extents(const qt_conv_args& args);

// groups = input channels = output channels: for the families of depthwise kernels.
bool is_depthwise(const qt_conv_args& args);

}  // namespace qtool
