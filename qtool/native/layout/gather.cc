#include "layout/gather.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace qtool {
namespace {

constexpr int64_t kChunk = 64 * 1024;  // bytes

class GatherOp final : public Op {
 public:
  GatherOp(const qt_gather_args& args, const char* kernel) : args_(args), kernel_(kernel) {
    require(args.index_bytes == 4 || args.index_bytes == 8, "numbers do not have 4 or 8 bytes");
    require(args.table_rows >= 1 && args.row_bytes >= 1, "the table is empty");
    table_bytes_ = checked_product({args.table_rows, args.row_bytes});
    output_bytes_ = checked_product({args.count, args.row_bytes});
  }

  const char* kernel() const override { return kernel_; }
  Extents extents() const override {
    return {2, {checked_product({args_.count, args_.index_bytes}), table_bytes_}, output_bytes_};
  }

  void run(const RunContext& context) const override {
    const void* indices = context.inputs[0];
    check(indices);
    const uint8_t* table = static_cast<const uint8_t*>(context.inputs[1]);
    uint8_t* y = static_cast<uint8_t*>(context.output);
    const int64_t rows = std::max<int64_t>(1, kChunk / args_.row_bytes);
    context.pool->parallel((args_.count + rows - 1) / rows, [&](int64_t chunk, int) {
      const int64_t last = std::min(args_.count, (chunk + 1) * rows);
      for (int64_t i = chunk * rows; i < last; i++) {
        const int64_t row = index(indices, i), from = row < 0 ? row + args_.table_rows : row;
        std::memcpy(y + i * args_.row_bytes, table + from * args_.row_bytes, args_.row_bytes);
      }
    });
  }

 private:
  int64_t index(const void* indices, int64_t i) const {
    return args_.index_bytes == 8 ? static_cast<const int64_t*>(indices)[i] : static_cast<const int32_t*>(indices)[i];
  }

  // Data, and not the description, may be wrong here.
  void check(const void* indices) const {
    int64_t low = 0, high = 0;
    for (int64_t i = 0; i < args_.count; i++) {
      low = i == 0 ? index(indices, i) : std::min(low, index(indices, i));
      high = i == 0 ? index(indices, i) : std::max(high, index(indices, i));
    }
    const int64_t least = args_.wrap != 0 ? -args_.table_rows : 0;
    if (low >= least && high < args_.table_rows) return;
    throw InvalidPlan(std::string("got ") + (args_.wrap != 0 ? "indices" : "ids") + " from " + std::to_string(low) +
                      " to " + std::to_string(high) + ", expected " + std::to_string(least) + " to " +
                      std::to_string(args_.table_rows - 1));
  }

  qt_gather_args args_;
  const char* kernel_;
  int64_t table_bytes_, output_bytes_;
};

}  // namespace

std::unique_ptr<Op> make_gather(const qt_gather_args& args, const char* kernel) {
  return std::make_unique<GatherOp>(args, kernel);
}

}  // namespace qtool
