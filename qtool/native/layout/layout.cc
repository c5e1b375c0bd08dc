// The operators of the family: checks of the description, cutting into chunks, choice of the kernels.
#include "layout/layout.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/rows.h"
#include "layout/gather.h"
#include "layout/move.h"
#include "layout/permute.h"

namespace qtool {
namespace {

constexpr Row<const LayoutKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "layout/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kTile = 64;          // rows that are quantized together before they are transposed
constexpr int64_t kTileBytes = 4096;   // of them
constexpr int64_t kChunk = 64 * 1024;  // elements or bytes a chunk

constexpr int64_t chunks_of(int64_t count, int64_t size) { return count / size + (count % size != 0); }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

class LayoutOp : public Op {
 public:
  explicit LayoutOp(const Row<const LayoutKernels*>& row) : row_(row) {}
  const char* kernel() const override { return row_.name; }

 protected:
  const LayoutKernels& kernels() const { return *row_.kernel; }

 private:
  const Row<const LayoutKernels*>& row_;
};

// QUANTIZE and DEQUANTIZE: Q says which.
template <bool Q>
class QuantizeOp : public LayoutOp {
 public:
  QuantizeOp(const qt_quantize_args& args, const Row<const LayoutKernels*>& row) : LayoutOp(row), args_(args) {
    require(std::isfinite(args.scale) && args.scale > 0, "the scale is not a positive number");
    require(args.storage >= QT_UINT8 && args.storage <= QT_INT8_SHIFTED, "there is no such storage");
    const int shift = args.storage == QT_UINT8 ? 0 : 128;
    require(args.zero_point >= -shift && args.zero_point <= 255 - shift, "the zero point is out of range");
    scale_ = {args.scale, 1.0f / args.scale, args.zero_point + shift, shift, args.storage == QT_INT8 ? uint8_t{0x80} : uint8_t{0}};
    count_ = checked_product({args.outer, args.rows, args.cols});
    transposed_ = args.transpose != 0 && args.rows > 1 && args.cols > 1;
  }

  Extents extents() const override { return {1, {Q ? count_ * 4 : count_}, Q ? count_ : count_ * 4}; }

  void run(const RunContext& context) const override {
    const Source* x = static_cast<const Source*>(context.inputs[0]);
    Target* y = static_cast<Target*>(context.output);
    if (!transposed_) {
      context.pool->parallel(chunks_of(count_, kChunk), [&](int64_t chunk, int) {
        convert(x + chunk * kChunk, y + chunk * kChunk, least(kChunk, count_ - chunk * kChunk));
      });
      return;
    }
    const int64_t width = strip();
    const int64_t strips = chunks_of(args_.cols, width);
    context.pool->parallel(args_.outer * strips, [&](int64_t chunk, int) {
      const int64_t first = chunk % strips * width, offset = chunk / strips * args_.rows * args_.cols;
      convert_strip(x + offset, y + offset, first, least(first + width, args_.cols));
    });
  }

 private:
  using Source = std::conditional_t<Q, float, uint8_t>;
  using Target = std::conditional_t<Q, uint8_t, float>;

  // Columns a chunk: whole tiles, about a quarter of kChunk elements, since a picture has few.
  int64_t strip() const { return chunks_of(chunks_of(kChunk / 4, args_.rows), kTile) * kTile; }

  void convert(const Source* x, Target* y, int64_t count) const {
    if constexpr (Q) {
      kernels().quantize(x, y, count, scale_);
    } else {
      kernels().dequantize(x, y, count, scale_);
    }
  }

  // Columns first..last-1 of one [rows][cols] become rows of the target. What is transposed is always the bytes.
  void convert_strip(const Source* x, Target* y, int64_t first, int64_t last) const {
    alignas(64) uint8_t tile[kTileBytes];
    const int64_t most = kTileBytes / least(kTile, args_.rows) / kTile * kTile;  // columns: of few rows more of them
    for (int64_t c = first; c < last; c += most) {
      for (int64_t r = 0; r < args_.rows; r += kTile) {
        const int64_t width = least(most, last - c), height = least(kTile, args_.rows - r);
        const Source* from = x + r * args_.cols + c;
        Target* to = y + c * args_.rows + r;
        if constexpr (Q) {
          for (int64_t i = 0; i < height; i++) convert(from + i * args_.cols, tile + i * most, width);
          kernels().transpose8(tile, most, to, args_.rows, height, width);
        } else {
          kernels().transpose8(from, args_.cols, tile, height, height, width);
          for (int64_t i = 0; i < width; i++) convert(tile + i * height, to + i * args_.rows, height);
        }
      }
    }
  }

  qt_quantize_args args_;
  QuantizeScale scale_;
  int64_t count_;
  bool transposed_;
};

class CopyOp : public LayoutOp {
 public:
  CopyOp(const qt_copy_args& args, const Row<const LayoutKernels*>& row) : LayoutOp(row), args_(args) {
    checked_product({args.rows, args.row_bytes});
    require(args.rows <= 1 || args.out_stride >= args.row_bytes, "the rows of the output overlap");
    input_bytes_ = end(args.in_offset, args.in_stride);
    output_bytes_ = end(args.out_offset, args.out_stride);
    if (args.lut != nullptr) std::memcpy(lut_, args.lut, sizeof(lut_));
  }

  Extents extents() const override { return {1, {input_bytes_}, output_bytes_}; }

  void run(const RunContext& context) const override {
    const uint8_t* x = static_cast<const uint8_t*>(context.inputs[0]) + args_.in_offset;
    uint8_t* y = static_cast<uint8_t*>(context.output) + args_.out_offset;
    if (args_.row_bytes == 0) return;
    const int64_t rows = chunks_of(kChunk, args_.row_bytes);
    context.pool->parallel(chunks_of(args_.rows, rows), [&](int64_t chunk, int) {
      const int64_t last = least((chunk + 1) * rows, args_.rows);
      for (int64_t r = chunk * rows; r < last; r++) copy_row(x + r * args_.in_stride, y + r * args_.out_stride);
    });
  }

 private:
  int64_t end(int64_t offset, int64_t stride) const {
    require(offset >= 0, "an offset is negative");
    if (args_.rows == 0 || args_.row_bytes == 0) return 0;
    const int64_t last = checked_product({args_.rows - 1, stride});
    return checked_product({offset, 1}) + last + args_.row_bytes;
  }

  void copy_row(const uint8_t* x, uint8_t* y) const {
    if (args_.lut == nullptr) {
      std::memcpy(y, x, static_cast<size_t>(args_.row_bytes));
    } else {
      for (int64_t i = 0; i < args_.row_bytes; i++) y[i] = lut_[x[i]];
    }
  }

  qt_copy_args args_;  // args_.lut only says whether there is a table
  uint8_t lut_[256];
  int64_t input_bytes_, output_bytes_;
};

class PermuteOp : public LayoutOp {
 public:
  PermuteOp(const qt_permute_args& args, const Row<const LayoutKernels*>& row)
      : LayoutOp(row), permutation_(args), bytes_(permutation_.bytes()) {}

  Extents extents() const override { return {1, {bytes_}, bytes_}; }

  void run(const RunContext& context) const override {
    const uint8_t* x = static_cast<const uint8_t*>(context.inputs[0]);
    uint8_t* y = static_cast<uint8_t*>(context.output);
    context.pool->parallel(permutation_.chunks(), [&](int64_t chunk, int) { permutation_.run(kernels(), x, y, chunk); });
  }

 private:
  Permutation permutation_;
  int64_t bytes_;
};

class MoveOp : public LayoutOp {
 public:
  MoveOp(const qt_move_args& args, const Row<const LayoutKernels*>& row) : LayoutOp(row), moves_(args) {}

  Extents extents() const override { return {1, {moves_.input_bytes()}, moves_.output_bytes()}; }
  int64_t packed_bytes() const override { return moves_.bytes(); }

  void run(const RunContext& context) const override {
    const uint8_t* x = static_cast<const uint8_t*>(context.inputs[0]);
    uint8_t* y = static_cast<uint8_t*>(context.output);
    context.pool->parallel(moves_.chunks(), [&](int64_t chunk, int) { moves_.run(x, y, chunk); });
  }

 private:
  Moves moves_;
};

}  // namespace

std::unique_ptr<Op> make_layout(const qt_op& op, const MakeContext& context) {
  const Row<const LayoutKernels*>& row = select_row(kRows, context);
  switch (op.kind) {
    case QT_OP_QUANTIZE:
      return std::make_unique<QuantizeOp<true>>(*static_cast<const qt_quantize_args*>(op.args), row);
    case QT_OP_DEQUANTIZE:
      return std::make_unique<QuantizeOp<false>>(*static_cast<const qt_quantize_args*>(op.args), row);
    case QT_OP_COPY: return std::make_unique<CopyOp>(*static_cast<const qt_copy_args*>(op.args), row);
    case QT_OP_PERMUTE: return std::make_unique<PermuteOp>(*static_cast<const qt_permute_args*>(op.args), row);
    case QT_OP_GATHER: return make_gather(*static_cast<const qt_gather_args*>(op.args), row.name);
    case QT_OP_MOVE: return std::make_unique<MoveOp>(*static_cast<const qt_move_args*>(op.args), row);
    default: throw InvalidPlan("this is no layout operator");
  }
}

void list_layout(std::vector<KernelInfo>* list) { list_rows("layout", kRows, list); }

}  // namespace qtool
