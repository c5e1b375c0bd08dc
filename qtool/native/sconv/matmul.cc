#include "sconv/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "layout/layout.h"

namespace qtool {
namespace {

constexpr Row<const LayoutKernels*> kLayouts[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "layout/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kBlockBytes = 256 << 10;  // of a panel, to stay in the L2 cache while all rows of a chunk use it
constexpr int64_t kChunkRows = 384;
constexpr int kBatchAxes = 4;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t n) { return ceil_div(n, 16) * 16; }  // floats of whole cache lines

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

// What one chunk works on: some rows and columns of one product.
struct Job {
  const float *a, *b, *mask;  // first row and column
  float* y;
  int64_t rows;
  int columns, vectors;
  float *panel, *bias, *partial, *packed_a;  // scratch
  const float** pointers;
};

class Smatmul final : public Op {
 public:
  Smatmul(const qt_matmul_args& args, const Row<const SconvKernel*>& row);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override;
  int64_t scratch_bytes() const override;

 private:
  int64_t offset(const int64_t (&strides)[kBatchAxes], int64_t index) const;
  void run_chunk(const RunContext& context, int64_t chunk, int thread) const;
  void pack_b(const Job& job) const;
  void point_to_a(const Job& job) const;
  void multiply(const Job& job) const;
  bool packs_a() const { return args_.a_inner != 1; }

  qt_matmul_args args_;
  Row<const SconvKernel*> row_;
  const SconvKernel& kernel_;
  const LayoutKernels& layout_;
  int64_t products_, panels_, row_parts_, most_rows_, blocks_;
};

Smatmul::Smatmul(const qt_matmul_args& args, const Row<const SconvKernel*>& row)
    : args_(args), row_(row), kernel_(*row.kernel),
      layout_(*select_row(kLayouts, row.isa, nullptr, [](const Row<const LayoutKernels*>&) { return true; }).kernel),
      products_(checked_product({args.batch[0], args.batch[1], args.batch[2], args.batch[3]})),
      panels_(ceil_div(args.columns, kernel_.columns)), row_parts_(ceil_div(args.rows, kChunkRows)),
      most_rows_(ceil_div(args.rows, row_parts_)),
      blocks_(ceil_div(args.inner, kBlockBytes / (kernel_.columns * 4))) {}

int64_t extent(const qt_matmul_args& a, const int64_t (&strides)[kBatchAxes], const int64_t (&last)[4]) {
  int64_t end = last[0] * last[1] + last[2] * last[3] + 1;
  for (int axis = 0; axis < kBatchAxes; axis++) {
    if (a.batch[axis] == 0) return 0;
    end += checked_product({a.batch[axis] - 1, strides[axis]});
  }
  return checked_product({end, 4});
}

Extents Smatmul::extents() const {
  const qt_matmul_args& a = args_;
  const int64_t rows = a.rows - 1, inner = a.inner - 1, columns = a.columns - 1;
  Extents extents = {a.mask != 0 ? 3 : 2, {}, extent(a, a.y_batch, {rows, a.y_row, columns, 1})};
  extents.inputs[0] = extent(a, a.a_batch, {rows, a.a_row, inner, a.a_inner}) + a.a_offset * 4;
  extents.inputs[1] = extent(a, a.b_batch, {inner, a.b_inner, columns, a.b_column}) + a.b_offset * 4;
  extents.inputs[2] = a.mask != 0 ? extent(a, a.mask_batch, {rows, a.mask_row, columns, 1}) + a.mask_offset * 4 : 0;
  return extents;
}

int64_t Smatmul::scratch_bytes() const {
  const int64_t partial = blocks_ > 1 ? most_rows_ * kernel_.columns : 0;
  const int64_t floats = checked_product({args_.inner + 1, kernel_.columns}) + partial +
                         (packs_a() ? checked_product({most_rows_, round_up(args_.inner)}) : 0);
  return floats * 4 + round_up(most_rows_ + kernel_.rows) * static_cast<int64_t>(sizeof(float*));
}

// Of a product among the others.
int64_t Smatmul::offset(const int64_t (&strides)[kBatchAxes], int64_t index) const {
  int64_t sum = 0;
  for (int axis = kBatchAxes - 1; axis >= 0; axis--) {
    sum += index % args_.batch[axis] * strides[axis];
    index /= args_.batch[axis];
  }
  return sum;
}

void Smatmul::run(const RunContext& context) const {
  context.pool->parallel(products_ * row_parts_ * panels_,
                         [&](int64_t chunk, int thread) { run_chunk(context, chunk, thread); });
}

void Smatmul::run_chunk(const RunContext& context, int64_t chunk, int thread) const {
  const int64_t column = chunk % panels_ * kernel_.columns, part = chunk / panels_ % row_parts_;
  const int64_t index = chunk / panels_ / row_parts_, first = part_begin(args_.rows, row_parts_, part);
  Job job;
  job.rows = part_begin(args_.rows, row_parts_, part + 1) - first;
  job.columns = static_cast<int>(std::min<int64_t>(kernel_.columns, args_.columns - column));
  job.vectors = (job.columns + kernel_.step - 1) / kernel_.step;
  const float* const* in = reinterpret_cast<const float* const*>(context.inputs);
  job.a = in[0] + args_.a_offset + offset(args_.a_batch, index) + first * args_.a_row;
  job.b = in[1] + args_.b_offset + offset(args_.b_batch, index) + column * args_.b_column;
  job.mask = nullptr;
  if (args_.mask != 0) {
    job.mask = in[2] + args_.mask_offset + offset(args_.mask_batch, index) + first * args_.mask_row + column;
  }
  job.y = static_cast<float*>(context.output) + offset(args_.y_batch, index) + first * args_.y_row + column;
  job.panel = reinterpret_cast<float*>(context.scratch + thread * context.scratch_stride);
  job.bias = job.panel + args_.inner * kernel_.columns;
  job.partial = job.bias + kernel_.columns;
  job.packed_a = job.partial + (blocks_ > 1 ? most_rows_ * kernel_.columns : 0);
  job.pointers = reinterpret_cast<const float**>(job.packed_a + (packs_a() ? most_rows_ * round_up(args_.inner) : 0));
  pack_b(job);
  point_to_a(job);
  multiply(job);
}

// To [k][width], filled with zeros; a mask that is the same for all rows is the bias.
void Smatmul::pack_b(const Job& job) const {
  const int width = job.vectors * kernel_.step;
  const int64_t inner = args_.inner;
  if (job.columns < width) std::memset(job.panel, 0, inner * width * 4);
  if (args_.b_column == 1) {
    for (int64_t k = 0; k < inner; k++) std::memcpy(job.panel + k * width, job.b + k * args_.b_inner, job.columns * 4);
  } else if (args_.b_inner == 1) {
    layout_.transpose32(reinterpret_cast<const uint32_t*>(job.b), args_.b_column,
                        reinterpret_cast<uint32_t*>(job.panel), width, job.columns, inner);
  } else {
    for (int64_t k = 0; k < inner; k++) {
      for (int c = 0; c < job.columns; c++) {
        job.panel[k * width + c] = job.b[k * args_.b_inner + c * args_.b_column];
      }
    }
  }
  if (args_.scale != 1) {
    for (int64_t i = 0; i < inner * width; i++) job.panel[i] *= args_.scale;
  }
  std::memset(job.bias, 0, width * 4);
  if (job.mask != nullptr && args_.mask_row == 0) std::memcpy(job.bias, job.mask, job.columns * 4);
}

void Smatmul::point_to_a(const Job& job) const {
  const int64_t stride = round_up(args_.inner);
  for (int64_t row = 0; row < job.rows; row++) {
    const float* from = job.a + row * args_.a_row;
    job.pointers[row] = packs_a() ? job.packed_a + row * stride : from;
    for (int64_t k = 0; k < args_.inner && packs_a(); k++) job.packed_a[row * stride + k] = from[k * args_.a_inner];
  }
}

void Smatmul::multiply(const Job& job) const {
  SconvTile tile;
  tile.taps = 1;
  tile.vectors = job.vectors;
  tile.columns = job.columns;
  tile.bias = job.bias;
  tile.pitch = args_.y_row;
  tile.residual_pitch = args_.mask_row;
  tile.low = -INFINITY;
  tile.high = INFINITY;
  const int64_t tiles = ceil_div(job.rows, kernel_.rows);
  for (int64_t block = 0; block < blocks_; block++) {
    tile.offset = part_begin(args_.inner, blocks_, block);
    tile.length = part_begin(args_.inner, blocks_, block + 1) - tile.offset;
    tile.weight = job.panel + tile.offset * job.vectors * kernel_.step;
    tile.first = block == 0;
    tile.last = block == blocks_ - 1;
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t row = part_begin(job.rows, tiles, t);
      tile.rows = static_cast<int>(part_begin(job.rows, tiles, t + 1) - row);
      tile.pixels = job.pointers + row;
      tile.partial = job.partial + row * kernel_.columns;
      tile.out = job.y + row * tile.pitch;
      tile.residual = job.mask != nullptr && args_.mask_row != 0 ? job.mask + row * args_.mask_row : nullptr;
      kernel_.run(tile);
    }
  }
}

void check(const qt_matmul_args& a) {
  require(a.rows >= 1 && a.inner >= 1 && a.columns >= 1, "rows, inner and columns must be 1 or more");
  for (const int64_t stride : {a.a_row, a.a_inner, a.a_offset, a.b_inner, a.b_column, a.b_offset, a.mask_row,
                               a.mask_offset, a.y_row}) {
    require(stride >= 0, "a stride or an offset is negative");
  }
  checked_product({a.rows, std::max(a.inner, a.columns), 4});
  checked_product({a.inner, a.columns, 4});
  checked_product({a.rows, std::max({a.a_row, a.mask_row, a.y_row}), 4});
  checked_product({a.inner, std::max(a.a_inner, a.b_inner), 4});
  checked_product({a.columns, a.b_column, 4});
  checked_product({std::max({a.a_offset, a.b_offset, a.mask_offset}), 4});
}

}  // namespace

std::unique_ptr<Op> make_smatmul(const qt_matmul_args& args, const Row<const SconvKernel*>& row) {
  check(args);
  return std::make_unique<Smatmul>(args, row);
}

}  // namespace qtool
