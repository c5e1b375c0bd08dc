// The operators of the family: checks of the description, broadcasting, cutting into chunks.
#include "eltwise/eltwise.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/rows.h"

namespace qtool {
namespace {

constexpr Row<const EltwiseKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "eltwise/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kChunk = 16 * 1024;  // elements

int64_t chunks_of(int64_t count) { return (count + kChunk - 1) / kChunk; }

class SbinaryOp : public Op {
 public:
  SbinaryOp(const qt_binary_args& args, const Row<const EltwiseKernels*>& row) : args_(args), row_(row) {
    require(args.kind >= QT_ADD && args.kind <= QT_DIV, "there is no such binary operator");
    require(args.b_broadcast >= 0 && args.b_broadcast <= 3, "there is no such broadcast");
    require(args.b_broadcast != 3 || args.rows_per_b > 0, "rows_per_b is not positive");
    require(!(args.out_min_f > args.out_max_f), "the least output is above the largest");
    count_ = checked_product({args.rows, args.channels});
    if (count_ == 0) args_.rows = 0;  // rows of no channels may be any number
    args_.rows_per_b = std::min(args.rows_per_b, std::max<int64_t>(1, args_.rows));
  }

  const char* kernel() const override { return row_.name; }

  Extents extents() const override {
    const int64_t groups = args_.b_broadcast == 3 ? (args_.rows + args_.rows_per_b - 1) / args_.rows_per_b : 0;
    const int64_t sizes[] = {count_, args_.channels, 1, groups * args_.channels};
    return {2, {count_ * 4, sizes[args_.b_broadcast] * 4}, count_ * 4};
  }

  void run(const RunContext& context) const override {
    const float* a = static_cast<const float*>(context.inputs[0]);
    const float* b = static_cast<const float*>(context.inputs[1]);
    float* y = static_cast<float*>(context.output);
    if (args_.b_broadcast == 0 || args_.b_broadcast == 2) {
      const BinaryRow row = {args_.kind, args_.b_broadcast == 0 ? 1 : 0, args_.out_min_f, args_.out_max_f};
      context.pool->parallel(chunks_of(count_), [&](int64_t chunk, int) {
        const int64_t first = chunk * kChunk, size = std::min(kChunk, count_ - first);
        row_.kernel->binary(a + first, b + first * row.b_step, y + first, size, row);
      });
      return;
    }
    const int64_t rows = std::max<int64_t>(1, kChunk / std::max(1, args_.channels));
    context.pool->parallel((args_.rows + rows - 1) / rows, [&](int64_t chunk, int) {
      run_rows(a, b, y, chunk * rows, std::min((chunk + 1) * rows, args_.rows));
    });
  }

 private:
  void run_rows(const float* a, const float* b, float* y, int64_t first, int64_t last) const {
    const BinaryRow row = {args_.kind, 1, args_.out_min_f, args_.out_max_f};
    for (int64_t r = first; r < last; r++) {
      const int64_t group = args_.b_broadcast == 3 ? r / args_.rows_per_b : 0;
      const int64_t at = r * args_.channels;
      row_.kernel->binary(a + at, b + group * args_.channels, y + at, args_.channels, row);
    }
  }

  qt_binary_args args_;
  const Row<const EltwiseKernels*>& row_;
  int64_t count_;
};

class SunaryOp : public Op {
 public:
  SunaryOp(const qt_unary_args& args, const Row<const EltwiseKernels*>& row) : args_(args), row_(row) {
    require(args.kind >= QT_CLAMP && args.kind <= QT_EXP, "there is no such unary operator");
    bytes_ = checked_product({args.count, 4});
  }

  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return {1, {bytes_}, bytes_}; }

  void run(const RunContext& context) const override {
    const float* x = static_cast<const float*>(context.inputs[0]);
    float* y = static_cast<float*>(context.output);
    context.pool->parallel(chunks_of(args_.count), [&](int64_t chunk, int) {
      const int64_t first = chunk * kChunk, size = std::min(kChunk, args_.count - first);
      row_.kernel->unary(x + first, y + first, size, args_.kind, args_.a, args_.b);
    });
  }

 private:
  qt_unary_args args_;
  const Row<const EltwiseKernels*>& row_;
  int64_t bytes_;
};

class LutOp : public Op {
 public:
  LutOp(const qt_lut_args& args, const Row<const EltwiseKernels*>& row)
      : count_(checked_product({args.count})), channels_(args.channels == 0 ? 1 : args.channels), row_(row) {
    require(args.table != nullptr, "there is no table");
    require(channels_ > 0 && count_ % channels_ == 0, "the channels of the tables do not divide the bytes");
    tables_.assign(args.table, args.table + checked_product({channels_, 256}));
  }

  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return {1, {count_}, count_}; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(tables_.size()); }

  void run(const RunContext& context) const override {
    const uint8_t* x = static_cast<const uint8_t*>(context.inputs[0]);
    uint8_t* y = static_cast<uint8_t*>(context.output);
    if (channels_ > 1) return run_channels(context, x, y);
    context.pool->parallel(chunks_of(count_), [&](int64_t chunk, int) {
      const int64_t first = chunk * kChunk;
      row_.kernel->lut(x + first, y + first, std::min(kChunk, count_ - first), tables_.data());
    });
  }

 private:
  void run_channels(const RunContext& context, const uint8_t* x, uint8_t* y) const {
    const int64_t pixels = count_ / channels_, size = std::max<int64_t>(1, kChunk / channels_);
    context.pool->parallel((pixels + size - 1) / size, [&](int64_t chunk, int) {
      const int64_t end = std::min((chunk + 1) * size, pixels) * channels_;
      for (int64_t first = chunk * size * channels_; first < end; first += channels_) {
        for (int64_t c = 0; c < channels_; c++) y[first + c] = tables_[static_cast<size_t>(c * 256 + x[first + c])];
      }
    });
  }

  int64_t count_, channels_;
  const Row<const EltwiseKernels*>& row_;
  std::vector<uint8_t> tables_;
};

}  // namespace

std::unique_ptr<Op> make_eltwise(const qt_op& op, const MakeContext& context) {
  const Row<const EltwiseKernels*>& row = select_row(kRows, context);
  switch (op.kind) {
    case QT_OP_SBINARY: return std::make_unique<SbinaryOp>(*static_cast<const qt_binary_args*>(op.args), row);
    case QT_OP_SUNARY: return std::make_unique<SunaryOp>(*static_cast<const qt_unary_args*>(op.args), row);
    case QT_OP_LUT: return std::make_unique<LutOp>(*static_cast<const qt_lut_args*>(op.args), row);
    default: throw InvalidPlan("this is no elementwise operator");
  }
}

void list_eltwise(std::vector<KernelInfo>* list) { list_rows("eltwise", kRows, list); }

}  // namespace qtool
