// A checked description made into operators, ready to run.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/op.h"

namespace qtool {

struct Family {
  int kind;
  const char* name;
  MakeOp make;
  void (*list)(std::vector<KernelInfo>*);
};

const Family* find_family(int kind);  // NULL where this library has none
std::vector<KernelInfo> all_kernels();

}  // namespace qtool

struct qt_plan {
  // InvalidPlan, UnsupportedPlan, std::bad_alloc or std::system_error where it cannot be made.
  explicit qt_plan(const qt_plan_desc& desc);

  // Adds the seconds of each operator to `seconds` where that is not NULL.
  void run(void* const* external, double* seconds);
  void run_part(void* const* external, int first, int last);  // operators first .. last - 1, not of one with pieces
  const void* address(int buffer) const;                      // NULL for an external buffer, and for none
  const char* kernel(int op) const;  // NULL for an operator it does not have
  int64_t bytes() const;

 private:
  struct Step {
    std::unique_ptr<qtool::Op> op;
    int inputs[QT_MAX_INPUTS];
    int input_count;
    int output;
  };

  void place_buffers(const qt_plan_desc& desc);
  void make_steps(const qt_plan_desc& desc);
  Step make_step(const qt_plan_desc& desc, int index, qtool::Memory* memory);
  void bind(void* const* external);
  void run_steps(int first, int last, int64_t piece, double* seconds);

  std::atomic<bool> running_{false};
  std::vector<qtool::Memory> memories_;  // of each thread that packs weights
  qtool::Block arena_;
  std::shared_ptr<qtool::ThreadPool> pool_;
  std::vector<uint8_t*> addresses_;  // of the buffers; those of external ones change with each run
  std::vector<int64_t> piece_bytes_;
  int64_t pieces_;
  int piece_ops_;
  std::vector<int> external_;        // the external buffers in order
  std::vector<Step> steps_;
  std::unique_ptr<qtool::Block> scratch_;
  int64_t scratch_stride_ = 0;
};
