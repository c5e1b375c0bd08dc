#include "qrows/product.h"

#include <algorithm>
#include <cmath>

namespace qtool {
namespace {

constexpr int64_t kColumns = 64;  // of b that a chunk packs; a row of a is packed once for them
constexpr int64_t kStep = 32;     // numbers that kernels take at once
constexpr int64_t kMostInner = 33000;  // sums of products of two numbers of 9 bits stay within 32
constexpr int64_t kMostStride = int64_t{1} << 40;
constexpr int kBatchAxes = 4;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

bool is_byte(int value) { return value >= 0 && value <= 255; }

class Product final : public Op {
 public:
  Product(const qt_matmul_args& args, const QrowsKernels& kernels, const char* name)
      : args_(args), kernels_(kernels), name_(name), padded_(round_up(args.inner, kStep)) {
    products_ = checked_product({args.batch[0], args.batch[1], args.batch[2], args.batch[3]});
    blocks_ = (args.columns + kColumns - 1) / kColumns;
  }

  const char* kernel() const override { return name_; }
  int64_t scratch_bytes() const override { return (kColumns + 1) * padded_ * 2; }

  Extents extents() const override {
    const qt_matmul_args& a = args_;
    const int64_t rows = a.rows - 1, inner = a.inner - 1, columns = a.columns - 1;
    return {2,
            {a.a_offset + extent(a.a_batch, rows * a.a_row + inner * a.a_inner),
             a.b_offset + extent(a.b_batch, inner * a.b_inner + columns * a.b_column)},
            extent(a.y_batch, rows * a.y_row + columns)};
  }

  void run(const RunContext& context) const override {
    context.pool->parallel(products_ * blocks_, [&](int64_t chunk, int thread) {
      run_block(context, chunk / blocks_, chunk % blocks_ * kColumns,
                reinterpret_cast<int16_t*>(context.scratch + thread * context.scratch_stride));
    });
  }

 private:
  int64_t extent(const int64_t (&strides)[kBatchAxes], int64_t last) const {
    int64_t end = last + 1;
    for (int axis = 0; axis < kBatchAxes; axis++) {
      if (args_.batch[axis] == 0) return 0;
      end += checked_product({args_.batch[axis] - 1, strides[axis]});
    }
    return checked_product({end, 1});
  }

  // Of a product among the others.
  int64_t offset(const int64_t (&strides)[kBatchAxes], int64_t index) const {
    int64_t sum = 0;
    for (int axis = kBatchAxes - 1; axis >= 0; axis--) {
      sum += index % args_.batch[axis] * strides[axis];
      index /= args_.batch[axis];
    }
    return sum;
  }

  void pack(const uint8_t* x, int64_t stride, int zero, int16_t* packed) const {
    for (int64_t k = 0; k < args_.inner; k++) packed[k] = static_cast<int16_t>(x[k * stride] - zero);
    std::fill(packed + args_.inner, packed + padded_, int16_t{0});
  }

  void run_block(const RunContext& context, int64_t index, int64_t column, int16_t* scratch) const {
    const qt_matmul_args& args = args_;
    const uint8_t* a = static_cast<const uint8_t*>(context.inputs[0]) + args.a_offset + offset(args.a_batch, index);
    const uint8_t* b = static_cast<const uint8_t*>(context.inputs[1]) + args.b_offset + offset(args.b_batch, index);
    uint8_t* y = static_cast<uint8_t*>(context.output) + offset(args.y_batch, index) + column;
    const int64_t columns = std::min(kColumns, args.columns - column);
    int16_t* row = scratch + kColumns * padded_;
    for (int64_t c = 0; c < columns; c++) {
      pack(b + (column + c) * args.b_column, args.b_inner, args.b_zero, scratch + c * padded_);
    }
    for (int64_t c = columns; c < round_up(columns, 4); c++) std::fill_n(scratch + c * padded_, padded_, int16_t{0});
    for (int64_t r = 0; r < args.rows; r++) {
      pack(a + r * args.a_row, args.a_inner, args.a_zero, row);
      for (int64_t c = 0; c < columns; c += 4) {
        int32_t sums[4];
        kernels_.dot(row, scratch + c * padded_, padded_, padded_, sums);
        for (int64_t i = 0; i < std::min<int64_t>(4, columns - c); i++) y[r * args.y_row + c + i] = byte(sums[i]);
      }
    }
  }

  uint8_t byte(int32_t sum) const {
    const float q = std::nearbyint(static_cast<float>(sum) * args_.scale) + static_cast<float>(args_.out_zero);
    return static_cast<uint8_t>(std::min(std::max(q, 0.0f), 255.0f));
  }

  qt_matmul_args args_;
  const QrowsKernels& kernels_;
  const char* name_;
  int64_t padded_, products_, blocks_;
};

}  // namespace

std::unique_ptr<Op> make_product(const qt_matmul_args& a, const QrowsKernels& kernels, const char* name) {
  require(a.mask == 0, "a product of bytes has no mask");
  require(a.inner >= 1 && a.inner <= kMostInner, "the inner size must be in 1..33000");
  require(a.rows >= 1 && a.columns >= 1, "rows and columns must be 1 or more");
  for (const int64_t stride : {a.rows, a.columns, a.a_row, a.a_inner, a.a_offset, a.b_inner, a.b_column, a.b_offset, a.y_row}) {
    require(stride >= 0 && stride <= kMostStride, "a size or a stride is out of range");
  }
  checked_product({a.rows, a.a_row});
  checked_product({a.columns, a.b_column});
  checked_product({a.inner, std::max(a.a_inner, a.b_inner)});
  checked_product({a.rows, a.y_row});
  require(is_byte(a.a_zero) && is_byte(a.b_zero) && is_byte(a.out_zero), "a zero point is not in 0..255");
  require(std::isfinite(a.scale) && std::fabs(a.scale) < 1e28f, "the scale is not finite, or too large");
  return std::make_unique<Product>(a, kernels, name);
}

}  // namespace qtool
