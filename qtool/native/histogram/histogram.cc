// The operator: counts of pieces in each thread's own tables, which are added up in the end.
#include "histogram/histogram.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rows.h"

namespace qtool {
namespace {

constexpr Row<const HistogramKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "histogram/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kPiece = 16 * 1024;  // numbers
constexpr int64_t kMostBins = 1 << 20;  // float32 holds them and what is between two

class Histogram final : public Op {
 public:
  Histogram(const qt_histogram_args& args, const Row<const HistogramKernels*>& row, const MakeContext& context)
      : args_(args), row_(row), threads_(context.threads), bytes_(checked_product({args.count, 4})) {
    require(args.count >= 0 && args.count <= UINT32_MAX, "got more numbers than 32 bits can count, or less than none");
    require(args.bins >= 1 && args.bins <= kMostBins, "the number of bins is not in 1..2^20");
    pitch_ = (args.bins + 1 + 15) / 16 * 16;
    table_bytes_ = kHistogramTables * pitch_ * static_cast<int64_t>(sizeof(uint32_t));
    tables_ = reinterpret_cast<uint32_t*>(context.memory->allocate(threads_ * table_bytes_));
  }

  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return {2, {bytes_, args_.dyadic != 0 ? 4 : 8}, int64_t{args_.bins} * 8}; }

  void run(const RunContext& context) const override {
    const float* x = static_cast<const float*>(context.inputs[0]);
    const HistogramBins bins = bins_of(static_cast<const float*>(context.inputs[1]));
    CountBins* count = args_.dyadic != 0 ? row_.kernel->dyadic : row_.kernel->between;
    std::memset(tables_, 0, threads_ * table_bytes_);
    context.pool->parallel((args_.count + kPiece - 1) / kPiece, [&](int64_t piece, int thread) {
      const int64_t first = piece * kPiece;
      uint32_t* tables = tables_ + thread * kHistogramTables * pitch_;
      count(x + first, std::min(kPiece, args_.count - first), bins, tables, pitch_);
    });
    add_up(static_cast<int64_t*>(context.output));
  }

 private:
  HistogramBins bins_of(const float* given) const {
    if (args_.dyadic != 0) return {0, 0, given[0], args_.bins};
    return {given[0], given[1] - given[0], 0, args_.bins};
  }

  void add_up(int64_t* counts) const {
    std::fill(counts, counts + args_.bins, 0);
    for (int64_t table = 0; table < threads_ * kHistogramTables; table++) {
      const uint32_t* from = tables_ + table * pitch_;
      for (int32_t bin = 0; bin < args_.bins; bin++) counts[bin] += from[bin];
      counts[args_.bins - 1] += from[args_.bins];  // the upper limit itself
    }
  }

  qt_histogram_args args_;
  Row<const HistogramKernels*> row_;
  int64_t threads_, bytes_, pitch_, table_bytes_;
  uint32_t* tables_;  // [threads][kHistogramTables][pitch]; a plan runs once at a time
};

}  // namespace

std::unique_ptr<Op> make_histogram(const qt_op& op, const MakeContext& context) {
  const qt_histogram_args& args = *static_cast<const qt_histogram_args*>(op.args);
  return std::make_unique<Histogram>(args, select_row(kRows, context), context);
}

void list_histogram(std::vector<KernelInfo>* list) { list_rows("histogram", kRows, list); }

}  // namespace qtool
