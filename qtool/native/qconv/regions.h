// Rectangles of the output of a convolution that see the same taps.
//
// What lies in the padding adds nothing but x_zero * w: a line at the upper edge need not walk the kernel's upper taps,
// if the start of its sums is chosen to match. A 3x3 kernel on a picture of 7x7 walks 16 % fewer taps for it.
#pragma once

#include <vector>

#include "core/op.h"

namespace qtool {

struct QconvRegion {
  int64_t top, left, height, width;                // of every picture of the output
  int64_t ky, kx, kernel_height, kernel_width;     // the taps that are walked: ky .. ky + kernel_height - 1, ...
};

// Regions that cover the output, in order of their lines; none has much fewer than `least` pixels over the batch unless
// the output has. With `whole_rows` the rows of the kernel are not cut.
std::vector<QconvRegion> cut_regions(const qt_conv_args& args, bool whole_rows, int64_t least);

}  // namespace qtool
