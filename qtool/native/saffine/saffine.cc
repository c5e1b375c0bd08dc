#include "saffine/saffine.h"

#include <algorithm>
#include <cstring>

#include "core/rows.h"

namespace qtool {
namespace {

constexpr Row<SaffineKernel> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, name},
#include "saffine/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kChunkFloats = 32768;  // some microseconds

class Saffine final : public Op {
 public:
  Saffine(const qt_affine_args& args, const Row<SaffineKernel>& row, Memory* memory);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override;

 private:
  int64_t rows_, channels_;
  float* scale_;
  float* shift_;
  Row<SaffineKernel> row_;
};

Saffine::Saffine(const qt_affine_args& args, const Row<SaffineKernel>& row, Memory* memory)
    : rows_(args.rows), channels_(args.channels), scale_(reinterpret_cast<float*>(memory->allocate(channels_ * 4))),
      shift_(reinterpret_cast<float*>(memory->allocate(channels_ * 4))), row_(row) {
  std::memcpy(scale_, args.scale, channels_ * 4);
  std::memcpy(shift_, args.shift, channels_ * 4);
}

Extents Saffine::extents() const {
  const int64_t bytes = checked_product({rows_, channels_, 4});
  return {1, {bytes}, bytes};
}

void Saffine::run(const RunContext& context) const {
  const float* x = static_cast<const float*>(context.inputs[0]);
  float* y = static_cast<float*>(context.output);
  const int64_t rows_a_chunk = std::max<int64_t>(1, kChunkFloats / channels_);
  context.pool->parallel((rows_ + rows_a_chunk - 1) / rows_a_chunk, [&](int64_t chunk, int) {
    const int64_t first = chunk * rows_a_chunk, rows = std::min(rows_a_chunk, rows_ - first);
    row_.kernel(x + first * channels_, y + first * channels_, rows, channels_, scale_, shift_);
  });
}

}  // namespace

std::unique_ptr<Op> make_saffine(const qt_op& op, const MakeContext& context) {
  const qt_affine_args& args = *static_cast<const qt_affine_args*>(op.args);
  require(args.rows >= 0 && args.channels >= 1, "the number of rows must be 0 or more, of channels 1 or more");
  require(args.scale != nullptr && args.shift != nullptr, "the scale or the shift is missing");
  checked_product({args.rows, args.channels, 4});
  return std::make_unique<Saffine>(args, select_row(kRows, context), context.memory);
}

void list_saffine(std::vector<KernelInfo>* list) { list_rows("saffine", kRows, list); }

}  // namespace qtool
