#include "ceilings/ceilings.h"

#include "core/rows.h"

namespace qtool {
namespace {

constexpr Row<const CeilingKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "ceilings/kernels.inc"
#undef QT_KERNEL
};

CeilingLoop loop_of(const CeilingKernels& kernels, int kind) {
  switch (kind) {
    case QT_CEILING_INT8: return kernels.int8;
    case QT_CEILING_FLOAT: return kernels.float32;
    case QT_CEILING_READ: return kernels.read;
    default: throw InvalidPlan("there is no such kind of ceiling");
  }
}

class Ceiling final : public Op {
 public:
  Ceiling(const qt_ceiling_args& args, const Row<const CeilingKernels*>& row)
      : args_(args), loop_(loop_of(*row.kernel, args.kind)), name_(row.name) {}
  const char* kernel() const override { return name_; }
  Extents extents() const override {
    return {1, {checked_product({args_.chunks, args_.bytes})}, checked_product({args_.chunks, 8})};
  }

  void run(const RunContext& context) const override {
    const uint8_t* x = static_cast<const uint8_t*>(context.inputs[0]);
    int64_t* out = static_cast<int64_t*>(context.output);
    context.pool->parallel(args_.chunks, [&](int64_t chunk, int) {
      out[chunk] = loop_(x + chunk * args_.bytes, args_.bytes, args_.rounds);
    });
  }

 private:
  qt_ceiling_args args_;
  CeilingLoop loop_;
  const char* name_;
};

}  // namespace

std::unique_ptr<Op> make_ceilings(const qt_op& op, const MakeContext& context) {
  const qt_ceiling_args& args = *static_cast<const qt_ceiling_args*>(op.args);
  require(args.chunks >= 1 && args.rounds >= 0, "the number of chunks must be 1 or more, of rounds 0 or more");
  require(args.bytes >= kCeilingBytes && args.bytes % kCeilingBytes == 0, "the bytes must be a multiple of 1024");
  const bool whole = args.kind == QT_CEILING_READ || args.rounds % kCeilingRounds == 0;
  require(whole, "the rounds of products must be a multiple of 1024");
  return std::make_unique<Ceiling>(args, select_row(kRows, context));
}

void list_ceilings(std::vector<KernelInfo>* list) { list_rows("ceilings", kRows, list); }

}  // namespace qtool
