// What a kernel family gives to the plan: an Op made once, with its weights packed, and run many times.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/pool.h"
#include "qtool.h"

namespace qtool {

// A description that cannot be run; becomes QT_INVALID and its text.
struct InvalidPlan : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Something this machine does not have; becomes QT_UNSUPPORTED and its text.
struct UnsupportedPlan : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws InvalidPlan unless `condition` holds: for the checks of a description.
inline void require(bool condition, const char* text) {
  if (!condition) throw InvalidPlan(text);
}

// The product of sizes; InvalidPlan where one is negative or the product is larger than any memory.
inline int64_t checked_product(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  bool fits = true, empty = false;
  for (int64_t size : sizes) {
    require(size >= 0, "a size is negative");
    empty = empty || size == 0;
    fits = fits && !__builtin_mul_overflow(product, size, &product) && product <= (int64_t{1} << 46);
  }
  require(fits || empty, "the sizes are too large");
  return empty ? 0 : product;
}

// Bytes past its end that may be read (not used) of whatever lies in the arena or in Memory. Reading past the end of
// an external buffer is never allowed: of those, only the operators of the layout family are asked to read.
constexpr int64_t QT_SLACK = 4096;

// What an operator may use while it runs.
struct RunContext {
  const void* inputs[QT_MAX_INPUTS];
  void* output;
  ThreadPool* pool;
  uint8_t* scratch;        // scratch_bytes() for each thread, 64-byte aligned
  int64_t scratch_stride;  // from one thread's scratch to the next
  bool backwards;          // a hint: to walk weights from the last on, as those read last may still be in a cache
};

// The bytes of its buffers that an operator reads and writes; the plan checks that the buffers are as large.
struct Extents {
  int input_count;
  int64_t inputs[QT_MAX_INPUTS];
  int64_t output;
};

class Op {
 public:
  virtual ~Op() = default;
  virtual void run(const RunContext& context) const = 0;
  virtual const char* kernel() const = 0;                 // name of the row that runs
  virtual Extents extents() const = 0;
  virtual int64_t scratch_bytes() const { return 0; }     // a thread
  virtual int64_t packed_bytes() const { return 0; }      // beside what lies in MakeContext::memory
};

// What an operator may know while it is made.
struct MakeContext {
  int isa;             // highest qt_isa to use
  int threads;
  const char* kernel;  // NULL or the row to use; unknown names throw InvalidPlan
  Memory* memory;      // for packed weights; lives as long as the plan
};

using MakeOp = std::unique_ptr<Op> (*)(const qt_op& op, const MakeContext& context);

// One row of a family's kernels.inc, for listing.
struct KernelInfo {
  const char* family;
  int isa;
  const char* name;
  const char* tile;
};

// Each family defines, in its folder:
//   std::unique_ptr<Op> make_<family>(const qt_op&, const MakeContext&);
//   void list_<family>(std::vector<KernelInfo>*);
// and core/families.inc names it: QT_FAMILY(QT_OP_QCONV, qconv). op.args and op.kernel are checked to be there;
// everything that args says is for the family to check.

}  // namespace qtool
