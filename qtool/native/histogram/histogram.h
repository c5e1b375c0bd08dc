// Counts of float32 numbers in equal bins. Every operation is in float32 and rounded by itself.
//
//   between  bin of x = int((x - low) * bins / (high - low)), as torch.histc places it
//   dyadic   bin of x = floor(x * factor) + bins / 2, whose half is rounded down
//
// What would be beyond the last bin is in it; what would be before the first, NaN included, in the first.
//
// A kernel counts into kHistogramTables tables by turns, since the same bin often comes again at once (zeros behind a relu), and a
// count must not wait for the one before. This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

constexpr int kHistogramTables = 4;

struct HistogramBins {
  float low, width;  // high - low
  float factor;
  int32_t count;
};

// Adds to tables[kHistogramTables][pitch] the counts of n numbers; pitch is at least bins.count + 1.
using CountBins = void(const float* x, int64_t n, const HistogramBins& bins, uint32_t* tables, int64_t pitch);

struct HistogramKernels {
  CountBins* between;
  CountBins* dyadic;
};

#define QT_KERNEL(isa, name, tile) extern const HistogramKernels name;
#include "histogram/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
