// A permutation of the axes of an array, as batches of copies or of 2-d transpositions.
#pragma once

#include <cstdint>

#include "layout/layout.h"
#include "qtool.h"

namespace qtool {

// y[i_order[0], i_order[1], ...] = x[i_0, i_1, ...].
//
// Axes of size 1 are dropped and axes that stay neighbours are merged. If then the last axis stays the last, rows are
// copied; else the target's last axis ("rows" of the source) and the source's last ("cols") are transposed for each
// index of the other axes.
class Permutation {
 public:
  explicit Permutation(const qt_permute_args& args);  // InvalidPlan for what is no permutation
  int64_t bytes() const { return bytes_; }
  int64_t chunks() const { return chunks_; }
  void run(const LayoutKernels& kernels, const uint8_t* x, uint8_t* y, int64_t chunk) const;

 private:
  struct Axis {
    int64_t size, x_stride, y_stride;  // strides in bytes
  };

  struct Part {
    int64_t outer, first, last;  // index of the other axes, and the columns
  };

  void step(const LayoutKernels& kernels, const uint8_t* x, uint8_t* y, const Part& part) const;

  int64_t element_, bytes_;
  int axis_count_ = 0;
  Axis axes_[6];     // all but those of the copy or transposition, in the target's order
  int64_t outer_ = 1;
  bool copies_ = false;
  Axis rows_ = {}, cols_ = {};        // a copy has no rows_
  int64_t strip_ = 0, strips_ = 0;    // the columns are cut in strips
  int64_t batch_ = 0, chunks_ = 0;     // or, where there is but one strip, a chunk has several of the outer indices
};

}  // namespace qtool
