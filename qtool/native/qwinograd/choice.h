// Where Winograd's algorithm is faster than walking the taps of every pixel.
#pragma once

#include "core/op.h"

namespace qtool {

// Whether the family does such convolutions at all: 3x3 with stride 1, neither dilated nor in groups.
bool qwinograd_has_shape(const qt_conv_args& args);

// Tiles of size x size that are run together at most, for one thread.
int64_t qwinograd_chunk_tiles(const qt_conv_args& args, int size);

// What the convolution takes in tiles of size x size, about: cycles for 2 input channels and 16 output channels.
double qwinograd_cycles(const qt_conv_args& args, int size);

// The same without Winograd, of the faster of qconv's rows.
double qconv_cycles(const qt_conv_args& args);

}  // namespace qtool
