// Counts of float32 numbers in equal bins, as torch.histc places them.
//
//   bin of x = int((x - low) * bins / (high - low)), four operations in float32, each rounded; what would be beyond the last
//   bin is in it, what would be before the first, NaN included, in the first
//
// A kernel counts into kTables tables by turns, since the same bin often comes again at once (zeros behind a relu), and a
// count must not wait for the one before. This header is all that an instruction set file includes of qtool.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

constexpr int kHistogramTables = 4;

struct HistogramBins {
  float low, width;  // high - low
  int32_t count;
};

// Adds to tables[kHistogramTables][pitch] the counts of n numbers; pitch is at least bins.count + 1.
using HistogramKernel = void (*)(const float* x, int64_t n, const HistogramBins& bins, uint32_t* tables, int64_t pitch);

#define QT_KERNEL(isa, name, tile) \
  void name(const float* x, int64_t n, const HistogramBins& bins, uint32_t* tables, int64_t pitch);
#include "histogram/kernels.inc"
#undef QT_KERNEL

}  // namespace qtool
