// Rows of bytes moved by index, as runs of rows that stay neighbours.
#pragma once

#include <cstdint>
#include <vector>

#include "qtool.h"

namespace qtool {

class Moves {
 public:
  explicit Moves(const qt_move_args& args);  // InvalidPlan where a row is not there, or written twice
  int64_t input_bytes() const { return outer_ * input_; }
  int64_t output_bytes() const { return outer_ * output_; }
  int64_t bytes() const { return static_cast<int64_t>(runs_.size() * sizeof(Run)); }
  int64_t chunks() const { return outer_ * chunks_; }
  void run(const uint8_t* x, uint8_t* y, int64_t chunk) const;

 private:
  struct Run {
    int64_t from, to, bytes;  // from -1: the fill
  };

  std::vector<Run> runs_;
  int64_t outer_, input_, output_;  // bytes of one of outer
  int64_t per_chunk_ = 1, chunks_ = 0;  // runs
  int64_t element_;
  uint8_t fill_[8];
};

}  // namespace qtool
