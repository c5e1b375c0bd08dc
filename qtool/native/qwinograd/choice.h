// Where Winograd's algorithm is faster than walking the taps of every pixel.
#pragma once

#include "core/op.h"
#include "qwinograd/qwinograd.h"

namespace qtool {

// Whether the family does such convolutions at all: 3x3 with stride 1, neither dilated nor in groups.
bool qwinograd_has_shape(const qt_conv_args& args);

// Tiles that are run together at most, for one thread.
int64_t qwinograd_chunk_tiles(const qt_conv_args& args, const QwinogradKernel& kernel);

// What the convolution takes, about, in cycles.
double qwinograd_cycles(const qt_conv_args& args, const QwinogradKernel& kernel);

// The same without Winograd, of the fastest of qconv's rows for an instruction set that has rows here.
double qconv_cycles(const qt_conv_args& args, int isa);

}  // namespace qtool
