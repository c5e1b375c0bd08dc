// The weights, numbers and taps of a quantized depthwise convolution in the layout of a kernel.
#pragma once

#include <vector>

#include "core/op.h"
#include "qdwconv/qdwconv.h"

namespace qtool {

// A shape with what it points to. Moving keeps the pointers, copying would not.
struct QdwconvPacked {
  QdwconvPacked() = default;
  QdwconvPacked(QdwconvPacked&&) = default;
  QdwconvShape shape;
  std::vector<QdwconvSlot> slots;
  std::vector<QdwconvBlock> blocks;
};

// `args` must have passed check_qconv and be depthwise.
QdwconvPacked pack_qdwconv(const qt_conv_args& args, const QdwconvKernel& kernel, Memory* memory);

}  // namespace qtool
