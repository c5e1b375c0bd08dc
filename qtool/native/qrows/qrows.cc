// The operators of the family: checks of the description, cutting into chunks.
#include "qrows/qrows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rows.h"
#include "qrows/product.h"

namespace qtool {
namespace {

constexpr Row<const QrowsKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "qrows/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kChunk = 16 * 1024;  // bytes
constexpr int64_t kMost = int64_t{1} << 22;  // of n: sums stay within 32 bits, and those of powers within 63

class QrowsOp final : public Op {
 public:
  QrowsOp(int kind, const qt_qrows_args& args, const Row<const QrowsKernels*>& row, Memory* memory)
      : kind_(kind), args_(args), row_(row) {
    require(args.rows >= 0 && args.n >= 1 && args.n <= kMost, "rows must be 0 or more, their length in 1..2^22");
    require(args.inner >= 1 && (kind == QT_OP_QMEAN || args.inner == 1), "inner must be 1, but for a mean");
    require(args.shift == 0 || args.shift == 128, "the shift is 0 or 128");
    count_ = checked_product({args.rows, args.n, args.inner});
    if (kind == QT_OP_QSOFTMAX) copy_powers();
    if (kind == QT_OP_QLAYERNORM) copy_layer_norm(memory);
  }

  const char* kernel() const override { return row_.name; }

  Extents extents() const override {
    return {1, {count_}, kind_ == QT_OP_QSOFTMAX ? count_ * 4 : kind_ == QT_OP_QMEAN ? args_.rows * args_.inner : count_};
  }

  void run(const RunContext& context) const override {
    const uint8_t* x = static_cast<const uint8_t*>(context.inputs[0]);
    const int64_t size = args_.n * args_.inner, rows = std::max<int64_t>(1, kChunk / size);
    context.pool->parallel((args_.rows + rows - 1) / rows, [&](int64_t chunk, int) {
      const int64_t end = std::min(args_.rows, (chunk + 1) * rows);
      for (int64_t r = chunk * rows; r < end; r++) run_row(x + r * size, context.output, r);
    });
  }

 private:
  void run_row(const uint8_t* x, void* y, int64_t r) const {
    uint8_t* bytes = static_cast<uint8_t*>(y);
    if (kind_ == QT_OP_QSOFTMAX) {
      row_.kernel->softmax(x, static_cast<float*>(y) + r * args_.n, args_.n, powers_);
    } else if (kind_ == QT_OP_QMEAN) {
      row_.kernel->mean(x, bytes + r * args_.inner, args_.n, args_.inner, args_.shift);
    } else {
      row_.kernel->layer_norm(x, bytes + r * args_.n, args_);
    }
  }

  void copy_powers() {
    require(args_.powers != nullptr, "the powers are missing");
    for (int i = 0; i < 256; i++) {
      require(args_.powers[i] >= 0 && args_.powers[i] <= int64_t{1} << 40, "a power is not in 0..2^40");
    }
    require(args_.powers[0] > 0, "the largest power is 0");
    std::memcpy(powers_, args_.powers, sizeof(powers_));
  }

  void copy_layer_norm(Memory* memory) {
    require(std::isfinite(args_.x_scale) && args_.x_scale > 0 && std::isfinite(args_.out_scale) && args_.out_scale > 0,
            "a scale is not a positive number");
    require(std::isfinite(args_.eps) && args_.eps >= 0, "eps must be a number of 0 or more");
    args_.weight = copied(args_.weight, memory);
    args_.bias = copied(args_.bias, memory);
  }

  const float* copied(const float* values, Memory* memory) const {
    if (values == nullptr) return nullptr;
    float* copy = reinterpret_cast<float*>(memory->allocate(args_.n * 4));
    std::memcpy(copy, values, static_cast<size_t>(args_.n) * 4);
    return copy;
  }

  int kind_;
  qt_qrows_args args_;
  Row<const QrowsKernels*> row_;
  int64_t count_;
  int64_t powers_[256];
};

}  // namespace

std::unique_ptr<Op> make_qrows(const qt_op& op, const MakeContext& context) {
  const Row<const QrowsKernels*>& row = select_row(kRows, context);
  if (op.kind == QT_OP_QMATMUL) return make_product(*static_cast<const qt_matmul_args*>(op.args), *row.kernel, row.name);
  return std::make_unique<QrowsOp>(op.kind, *static_cast<const qt_qrows_args*>(op.args), row, context.memory);
}

void list_qrows(std::vector<KernelInfo>* list) { list_rows("qrows", kRows, list); }

}  // namespace qtool
