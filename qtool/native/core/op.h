// What a kernel family gives to the plan: an Op made once, with its weights packed, and run many times.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "qtool.h"

namespace qtool {

// A description that cannot be run; becomes QT_INVALID and its text.
struct InvalidPlan : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class ThreadPool;  // core/pool.h

// What an operator may use while it runs.
struct RunContext {
  const void* inputs[QT_MAX_INPUTS];
  void* output;
  ThreadPool* pool;
  uint8_t* scratch;        // scratch_bytes() for each thread, 64-byte aligned
  int64_t scratch_stride;  // from one thread's scratch to the next
};

class Op {
 public:
  virtual ~Op() = default;
  virtual void run(const RunContext& context) const = 0;
  virtual const char* kernel() const = 0;                 // name of the row that runs
  virtual int64_t scratch_bytes() const { return 0; }     // a thread
  virtual int64_t packed_bytes() const { return 0; }
};

// What an operator may know while it is made.
struct MakeContext {
  int isa;             // highest qt_isa to use
  int threads;
  const char* kernel;  // NULL or the row to use; unknown names throw InvalidPlan
};

using MakeOp = std::unique_ptr<Op> (*)(const qt_op& op, const MakeContext& context);

// One row of a family's kernels.inc, for listing.
struct KernelInfo {
  const char* family;
  int isa;
  const char* name;
  const char* tile;
};

// Each family's header declares:
//   std::unique_ptr<Op> make_<family>(const qt_op&, const MakeContext&);
//   void list_<family>(std::vector<KernelInfo>*);
// and core/families.inc lists them: QT_FAMILY(QT_OP_QCONV, qconv)

}  // namespace qtool
