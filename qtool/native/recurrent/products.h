// The matrix products of one direction of a recurrent layer, as operators of other families.
#pragma once

#include <memory>

#include "core/op.h"

namespace qtool {

// y[rows][outputs] = x[rows][inputs] . w' + bias, in float or with x quantized at run time, as the layer says.
class RecurrentProduct {
 public:
  // `first` output of the weight [directions][gates * hidden][inputs] (w, or the recurrent r) in `direction`.
  struct Part {
    int direction;
    bool recurrent;
    int64_t rows;
    int first, outputs;
  };

  RecurrentProduct(const qt_recurrent_args& args, const Part& part, const MakeContext& context);
  void run(const RunContext& context, const float* x, float* y, bool backwards = false) const;
  int64_t scratch_bytes() const { return op_->scratch_bytes(); }
  int64_t packed_bytes() const { return op_->packed_bytes(); }

 private:
  std::unique_ptr<Op> op_;
};

constexpr int recurrent_gates(int kind) { return kind == QT_LSTM ? 4 : kind == QT_GRU ? 3 : 1; }

}  // namespace qtool
