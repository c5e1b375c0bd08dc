// The operators of the family: checks of the description, cutting into pieces, sums over the pieces.
#include "teltwise/teltwise.h"

#include <algorithm>
#include <cmath>

#include "core/rows.h"

namespace qtool {
namespace {

constexpr Row<const TeltwiseKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "teltwise/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kPiece = 16 * 1024;  // elements

const float* input(const RunContext& context, int i) { return static_cast<const float*>(context.inputs[i]); }

class Clamp final : public Op {
 public:
  Clamp(int kind, const qt_tclamp_args& args, const Row<const TeltwiseKernels*>& row)
      : kind_(kind), args_(args), row_(row), bytes_(checked_product({args.count, 4})) {
    require(args.low <= args.high, "the lower limit is above the upper one");
  }

  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return {kind_ == QT_OP_TCLAMP ? 1 : 2, {bytes_, bytes_}, bytes_}; }

  void run(const RunContext& context) const override {
    context.pool->parallel((args_.count + kPiece - 1) / kPiece, [&](int64_t piece, int) {
      run_piece(context, piece * kPiece, std::min(kPiece, args_.count - piece * kPiece));
    });
  }

 private:
  void run_piece(const RunContext& context, int64_t first, int64_t count) const {
    const TeltwiseKernels& kernels = *row_.kernel;
    const float* a = input(context, 0) + first;
    const float* b = kind_ == QT_OP_TCLAMP ? nullptr : input(context, 1) + first;
    float* y = static_cast<float*>(context.output) + first;
    if (kind_ == QT_OP_TCLAMP) return kernels.clamp(a, y, count, args_.low, args_.high);
    if (kind_ == QT_OP_TADD) return kernels.add(a, b, y, count, args_.low, args_.high);
    const float low = std::isinf(args_.low) ? NAN : args_.low, high = std::isinf(args_.high) ? NAN : args_.high;
    kernels.clamp_grad(a, b, y, count, low, high);
  }

  int kind_;
  qt_tclamp_args args_;
  Row<const TeltwiseKernels*> row_;
  int64_t bytes_;
};

// Rows in pieces; operators that give a number or two for each row do so from those of its pieces.
class Quant final : public Op {
 public:
  Quant(int kind, const qt_tquant_args& args, const Row<const TeltwiseKernels*>& row, Memory* memory)
      : kind_(kind), args_(args), row_(row), bytes_(checked_product({args.rows, args.n, 4})),
        pieces_(args.n / kPiece + (args.n % kPiece != 0)) {
    require(args.rows >= 0 && args.n >= 0 && args.low <= args.high, "a size is negative, or low is above high");
    const int64_t bytes = checked_product({args.rows, pieces_, 2, sizeof(double)});
    if (gives_numbers()) partial_ = reinterpret_cast<double*>(memory->allocate(bytes));
  }

  const char* kernel() const override { return row_.name; }

  Extents extents() const override {
    const int64_t rows = checked_product({args_.rows, 4});
    if (kind_ == QT_OP_TMIN_MAX) return {1, {bytes_}, 2 * rows};
    if (kind_ == QT_OP_TFAKE_QUANT) return {2, {bytes_, 2 * rows}, bytes_};
    return {3, {bytes_, bytes_, 2 * rows}, kind_ == QT_OP_TFAKE_QUANT_GRAD ? bytes_ : rows};
  }

  void run(const RunContext& context) const override {
    const int64_t pieces = args_.rows * pieces_, together = pieces_ == 1 ? std::max<int64_t>(1, kPiece / args_.n) : 1;
    context.pool->parallel((pieces + together - 1) / together, [&](int64_t chunk, int) {
      const int64_t end = std::min(pieces, (chunk + 1) * together);
      for (int64_t piece = chunk * together; piece < end; piece++) run_piece(context, piece);
    });
    float* y = static_cast<float*>(context.output);
    if (gives_numbers()) {
      for (int64_t row = 0; row < args_.rows; row++) put_together(row, y);
    }
  }

 private:
  bool gives_numbers() const { return kind_ == QT_OP_TMIN_MAX || kind_ == QT_OP_TFAKE_QUANT_SCALE_GRAD; }

  Grid grid(const float* given, int64_t row) const {
    const float scale = given[row];
    return {scale, 1.0f / scale, given[args_.rows + row], args_.low, args_.high, args_.fused};
  }

  void run_piece(const RunContext& context, int64_t piece) const {
    const TeltwiseKernels& kernels = *row_.kernel;
    const int64_t row = piece / pieces_, at = piece % pieces_ * kPiece;
    const int64_t count = std::min(kPiece, args_.n - at), first = row * args_.n + at;
    const float* x = input(context, 0) + first;
    if (kind_ == QT_OP_TMIN_MAX) {
      const Extremes found = kernels.extremes(x, count);
      partial_[2 * piece] = found.low;
      partial_[2 * piece + 1] = found.high;
      return;
    }
    float* y = static_cast<float*>(context.output) + first;
    if (kind_ == QT_OP_TFAKE_QUANT) return kernels.quantize(x, y, count, grid(input(context, 1), row));
    const float* dy = input(context, 1) + first;
    const Grid here = grid(input(context, 2), row);
    if (kind_ == QT_OP_TFAKE_QUANT_GRAD) return kernels.quantize_grad(x, dy, y, count, here);
    partial_[2 * piece] = kernels.scale_grad(x, dy, count, here);
  }

  void put_together(int64_t row, float* y) const {
    double sum = 0, low = INFINITY, high = -INFINITY;
    for (int64_t piece = 0; piece < pieces_; piece++) {
      const double* part = &partial_[2 * (row * pieces_ + piece)];
      sum += part[0];
      low = part[0] < low || std::isnan(part[0]) ? part[0] : low;  // once NaN it stays
      high = part[1] > high || std::isnan(part[1]) ? part[1] : high;
    }
    y[row] = static_cast<float>(kind_ == QT_OP_TMIN_MAX ? low : sum);
    if (kind_ == QT_OP_TMIN_MAX) y[args_.rows + row] = static_cast<float>(high);
  }

  int kind_;
  qt_tquant_args args_;
  Row<const TeltwiseKernels*> row_;
  int64_t bytes_, pieces_;           // of a row
  double* partial_ = nullptr;  // [rows][pieces][2]; a plan runs once at a time
};

}  // namespace

std::unique_ptr<Op> make_teltwise(const qt_op& op, const MakeContext& context) {
  const Row<const TeltwiseKernels*>& row = select_row(kRows, context);
  if (op.kind >= QT_OP_TFAKE_QUANT && op.kind <= QT_OP_TMIN_MAX) {
    return std::make_unique<Quant>(op.kind, *static_cast<const qt_tquant_args*>(op.args), row, context.memory);
  }
  return std::make_unique<Clamp>(op.kind, *static_cast<const qt_tclamp_args*>(op.args), row);
}

void list_teltwise(std::vector<KernelInfo>* list) { list_rows("teltwise", kRows, list); }

}  // namespace qtool
