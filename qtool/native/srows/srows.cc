#include "srows/srows.h"

#include <algorithm>
#include <cmath>

#include "core/rows.h"

namespace qtool {
namespace {

constexpr Row<const SrowsKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "srows/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kChunkFloats = 16384;  // some microseconds

class Srows final : public Op {
 public:
  Srows(const qt_rows_args& args, bool layer_norm, const Row<const SrowsKernels*>& row, Memory* memory);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override;

 private:
  qt_rows_args args_;  // its arrays are those of the plan's memory
  bool layer_norm_;
  Row<const SrowsKernels*> row_;
};

const float* copy_or_fill(const float* values, int64_t n, float fill, Memory* memory) {
  float* copy = reinterpret_cast<float*>(memory->allocate(n * 4));
  for (int64_t i = 0; i < n; i++) copy[i] = values != nullptr ? values[i] : fill;
  return copy;
}

Srows::Srows(const qt_rows_args& args, bool layer_norm, const Row<const SrowsKernels*>& row, Memory* memory)
    : args_(args), layer_norm_(layer_norm), row_(row) {
  if (!layer_norm) return;
  args_.scale = copy_or_fill(args.scale, args.n, 1, memory);
  args_.shift = copy_or_fill(args.shift, args.n, 0, memory);
}

Extents Srows::extents() const {
  const int64_t bytes = checked_product({args_.rows, args_.n, 4});
  return {1, {bytes}, bytes};
}

void Srows::run(const RunContext& context) const {
  const float* x = static_cast<const float*>(context.inputs[0]);
  float* y = static_cast<float*>(context.output);
  const int64_t rows_a_chunk = std::max<int64_t>(1, kChunkFloats / args_.n);
  context.pool->parallel((args_.rows + rows_a_chunk - 1) / rows_a_chunk, [&](int64_t chunk, int) {
    const int64_t end = std::min(args_.rows, (chunk + 1) * rows_a_chunk);
    for (int64_t row = chunk * rows_a_chunk; row < end; row++) {
      const int64_t at = row * args_.n;
      if (layer_norm_) {
        row_.kernel->layer_norm(x + at, y + at, args_.n, args_.eps, args_.scale, args_.shift);
      } else {
        row_.kernel->softmax(x + at, y + at, args_.n);
      }
    }
  });
}

}  // namespace

std::unique_ptr<Op> make_srows(const qt_op& op, const MakeContext& context) {
  const qt_rows_args& args = *static_cast<const qt_rows_args*>(op.args);
  require(args.rows >= 0 && args.n >= 1, "the number of rows must be 0 or more, their length 1 or more");
  require(args.eps >= 0 && std::isfinite(args.eps), "eps must be a number of 0 or more");
  checked_product({args.rows, args.n, 4});
  return std::make_unique<Srows>(args, op.kind == QT_OP_SLAYERNORM, select_row(kRows, context), context.memory);
}

void list_srows(std::vector<KernelInfo>* list) { list_rows("srows", kRows, list); }

}  // namespace qtool
