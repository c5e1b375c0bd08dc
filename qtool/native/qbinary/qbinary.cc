// The operator of the family: checks of the description, broadcasting, cutting into chunks.
#include <algorithm>

#include "core/rows.h"
#include "qbinary/rows.h"

namespace qtool {
namespace {

constexpr Row<QbinaryRows> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, name},
#include "qbinary/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kChunk = 16 * 1024;  // elements

class QbinaryOp : public Op {
 public:
  QbinaryOp(const qt_binary_args& args, const Row<QbinaryRows>& row) : args_(args), row_(row) {
    require(qbinary_arithmetic_is_sound(args), "the arithmetic of two quantized tensors is out of range");
    require(args.b_broadcast >= 0 && args.b_broadcast <= 3, "there is no such broadcast");
    require(args.b_broadcast != 3 || args.rows_per_b > 0, "rows_per_b is not positive");
    count_ = checked_product({args.rows, args.channels});
    if (count_ == 0) args_.rows = 0;  // rows of no channels may be any number
    args_.rows_per_b = std::min(args.rows_per_b, std::max<int64_t>(1, args_.rows));
  }

  const char* kernel() const override { return row_.name; }

  Extents extents() const override {
    const int64_t groups = args_.b_broadcast == 3 ? (args_.rows + args_.rows_per_b - 1) / args_.rows_per_b : 0;
    const int64_t sizes[] = {count_, args_.channels, 1, groups * args_.channels};
    return {2, {count_, sizes[args_.b_broadcast]}, count_};
  }

  void run(const RunContext& context) const override {
    const uint8_t* a = static_cast<const uint8_t*>(context.inputs[0]);
    const uint8_t* b = static_cast<const uint8_t*>(context.inputs[1]);
    uint8_t* y = static_cast<uint8_t*>(context.output);
    // One b for a group of rows: all of them, rows_per_b, or (the same shape) a row of its own for each.
    const int64_t group = args_.b_broadcast == 3 ? args_.rows_per_b : std::max<int64_t>(1, args_.rows);
    const int64_t rows = std::max<int64_t>(1, kChunk / std::max(1, args_.channels));
    const int64_t chunks = (group + rows - 1) / rows, groups = (args_.rows + group - 1) / group;
    context.pool->parallel(groups * chunks, [&](int64_t chunk, int) {
      const int64_t g = chunk / chunks, first = g * group + chunk % chunks * rows;
      const int64_t last = std::min({first + rows, (g + 1) * group, args_.rows});
      if (first < last) run_rows(a, b, y, first, last, g);
    });
  }

 private:
  void run_rows(const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t first, int64_t last, int64_t group) const {
    const int64_t channels = args_.channels, at = first * channels;
    if (args_.b_broadcast == 0) {
      row_.kernel(args_, {a + at, b + at, y + at, channels, channels, channels, last - first, channels});
    } else if (args_.b_broadcast == 2) {
      uint8_t copies[256];
      std::fill_n(copies, sizeof(copies), b[0]);
      const int64_t count = (last - first) * channels, whole = count / 256, rest = count % 256;
      row_.kernel(args_, {a + at, copies, y + at, 256, 0, 256, whole, 256});
      row_.kernel(args_, {a + at + whole * 256, copies, y + at + whole * 256, 256, 0, 256, rest != 0 ? 1 : 0, rest});
    } else {
      const uint8_t* shared = b + (args_.b_broadcast == 3 ? group * channels : 0);
      row_.kernel(args_, {a + at, shared, y + at, channels, 0, channels, last - first, channels});
    }
  }

  qt_binary_args args_;
  const Row<QbinaryRows>& row_;
  int64_t count_;
};

}  // namespace

std::unique_ptr<Op> make_qbinary(const qt_op& op, const MakeContext& context) {
  return std::make_unique<QbinaryOp>(*static_cast<const qt_binary_args*>(op.args), select_row(kRows, context));
}

void list_qbinary(std::vector<KernelInfo>* list) { list_rows("qbinary", kRows, list); }

}  // namespace qtool
