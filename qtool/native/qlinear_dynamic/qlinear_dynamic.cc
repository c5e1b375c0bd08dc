#include "qlinear_dynamic/qlinear_dynamic.h"

#include <algorithm>
#include <cstring>

#include "core/rows.h"
#include "qlinear_dynamic/params.h"

namespace qtool {
namespace {

constexpr Row<const QlinearDynamicKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "qlinear_dynamic/kernels.inc"
#undef QT_KERNEL
};

constexpr int kShortDepth = 32;               // half a step of tiles: no gain over vectors
constexpr int64_t kRangeFloats = 16384;       // of one chunk of the search for the range
constexpr int64_t kBlockBytes = 256 << 10;    // of quantized rows, to stay in the L2 cache beside a panel
constexpr int64_t kLeastBlockRows = 96;       // that share one reading of the weights
constexpr int64_t kChunkRows = 96, kChunkWork = 1 << 19;  // of the product; work in multiplications

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

// Up to kernel.columns output features.
struct Panel {
  int64_t output;  // first feature
  int columns, vectors;
  const int8_t* weight;
  const int32_t* sums;
  const float* scale;
  const float* bias;
};

// Rows that are quantized together, and the scratch memory where their numbers are.
struct RowBlock {
  int64_t first, rows;
  uint8_t* q;
  float* scale;   // [rows]
  int32_t* zero;  // [rows]
};

class QlinearDynamic final : public Op {
 public:
  QlinearDynamic(const qt_linear_dynamic_args& args, const Row<const QlinearDynamicKernel*>& row, Memory* memory);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override;
  int64_t scratch_bytes() const override;

 private:
  Panel pack(const qt_linear_dynamic_args& args, int64_t output, Memory* memory) const;
  QuantParams find_params(const RunContext& context, float* ranges) const;
  void quantize(const RunContext& context, const RowBlock& block, const QuantParams* params) const;
  void multiply(const RunContext& context, const RowBlock& block) const;
  int64_t panel_bytes(const Panel& panel) const {
    return groups_ * kernel_.group * panel.vectors * kernel_.step;
  }
  void run_panel(const RowBlock& block, int64_t begin, int64_t end, const Panel& panel, float* out) const;

  qt_linear_dynamic_args args_;  // without its arrays
  Row<const QlinearDynamicKernel*> row_;
  const QlinearDynamicKernel& kernel_;
  int64_t groups_, q_bytes_;  // of k; of one quantized row
  int64_t block_rows_, range_chunks_;
  std::vector<Panel> panels_;
};

QlinearDynamic::QlinearDynamic(const qt_linear_dynamic_args& args, const Row<const QlinearDynamicKernel*>& row,
                               Memory* memory)
    : args_(args), row_(row), kernel_(*row.kernel), groups_(round_up(args.in_features, kernel_.depth) / kernel_.group),
      q_bytes_(round_up(groups_ * kernel_.group * kernel_.element_bytes, 64) | 64),
      range_chunks_(args.row_wise != 0 ? 0 : ceil_div(args.rows * args.in_features, kRangeFloats)) {
  block_rows_ = std::min(args.rows, std::max(kLeastBlockRows, kBlockBytes / q_bytes_));
  for (int64_t at = 0; at < args.out_features; at += kernel_.columns) panels_.push_back(pack(args, at, memory));
  args_.weight = nullptr;
  args_.w_scale = args_.bias = nullptr;
}

Panel QlinearDynamic::pack(const qt_linear_dynamic_args& args, int64_t output, Memory* memory) const {
  const int columns = static_cast<int>(std::min<int64_t>(kernel_.columns, args.out_features - output));
  const int vectors = (columns + kernel_.step - 1) / kernel_.step, width = vectors * kernel_.step;
  int8_t* weight = reinterpret_cast<int8_t*>(memory->allocate(groups_ * kernel_.group * width));
  int32_t* sums = reinterpret_cast<int32_t*>(memory->allocate(width * 4));
  float* scale = reinterpret_cast<float*>(memory->allocate(width * 4));
  float* bias = reinterpret_cast<float*>(memory->allocate(width * 4));
  for (int c = 0; c < columns; c++) {
    const int8_t* from = args.weight + (output + c) * args.in_features;
    uint32_t sum = 0;
    for (int64_t k = 0; k < args.in_features; k++) {
      weight[(k / kernel_.group * width + c) * kernel_.group + k % kernel_.group] = from[k];
      sum += static_cast<uint32_t>(from[k]);
    }
    sums[c] = static_cast<int32_t>(sum);
  }
  std::memcpy(scale, args.w_scale + output, columns * 4);
  if (args.bias != nullptr) std::memcpy(bias, args.bias + output, columns * 4);
  return {output, columns, vectors, weight, sums, scale, bias};
}

Extents QlinearDynamic::extents() const {
  return {1, {args_.rows * args_.in_features * 4}, args_.rows * args_.out_features * 4};
}

// All threads share what lies in the first one's scratch: quantized rows, their parameters, the chunks' ranges.
int64_t QlinearDynamic::scratch_bytes() const {
  return checked_product({block_rows_ + kernel_.row_tile - 1, q_bytes_ + 8}) + range_chunks_ * 8;
}

QuantParams QlinearDynamic::find_params(const RunContext& context, float* ranges) const {
  const float* x = static_cast<const float*>(context.inputs[0]);
  const int64_t count = args_.rows * args_.in_features;
  context.pool->parallel(range_chunks_, [&](int64_t chunk, int) {
    const int64_t from = chunk * kRangeFloats;
    ranges[2 * chunk] = ranges[2 * chunk + 1] = 0;
    kernel_.min_max(x + from, std::min(kRangeFloats, count - from), ranges + 2 * chunk);
  });
  float low = 0, high = 0;
  for (int64_t chunk = 0; chunk < range_chunks_; chunk++) {
    low = std::min(low, ranges[2 * chunk]);
    high = std::max(high, ranges[2 * chunk + 1]);
  }
  return choose_params(low, high, args_.reduce_range != 0);
}

// `params` of the whole input, or NULL for each row's own.
void QlinearDynamic::quantize(const RunContext& context, const RowBlock& block, const QuantParams* params) const {
  const int64_t rows_a_chunk = std::max<int64_t>(1, kRangeFloats / args_.in_features);
  context.pool->parallel(ceil_div(block.rows, rows_a_chunk), [&](int64_t chunk, int) {
    const int64_t end = std::min(block.rows, (chunk + 1) * rows_a_chunk);
    for (int64_t row = chunk * rows_a_chunk; row < end; row++) {
      const float* x = static_cast<const float*>(context.inputs[0]) + (block.first + row) * args_.in_features;
      QuantParams own = {0, 0};
      if (params == nullptr) {
        float range[2] = {0, 0};
        kernel_.min_max(x, args_.in_features, range);
        own = choose_params(range[0], range[1], args_.reduce_range != 0);
      }
      const QuantParams& use = params != nullptr ? *params : own;
      block.scale[row] = use.scale;
      block.zero[row] = use.zero;
      kernel_.quantize(x, args_.in_features, 1.0f / use.scale, use.zero, block.q + row * q_bytes_);
    }
  });
}

void QlinearDynamic::multiply(const RunContext& context, const RowBlock& block) const {
  const int64_t panels = panels_.size(), row_parts = ceil_div(block.rows, kChunkRows);
  const int64_t work = block.rows * args_.in_features * args_.out_features / row_parts;
  const int64_t panel_parts = std::min(panels, std::max<int64_t>(1, work / kChunkWork));
  context.pool->parallel(row_parts * panel_parts, [&](int64_t chunk, int) {
    const int64_t row_part = chunk % row_parts, in_order = chunk / row_parts;
    const int64_t panel_part = context.backwards ? panel_parts - 1 - in_order : in_order;
    const int64_t begin = part_begin(block.rows, row_parts, row_part);
    const int64_t end = part_begin(block.rows, row_parts, row_part + 1);
    const int64_t first = part_begin(panels, panel_parts, panel_part);
    const int64_t last = part_begin(panels, panel_parts, panel_part + 1);
    for (int64_t p = first; p < last; p++) {
      const Panel& panel = panels_[context.backwards ? first + last - 1 - p : p];
      run_panel(block, begin, end, panel, static_cast<float*>(context.output));
    }
  });
}

void QlinearDynamic::run_panel(const RowBlock& block, int64_t begin, int64_t end, const Panel& panel,
                               float* out) const {
  QlinearDynamicTile tile;
  tile.q_bytes = q_bytes_;
  tile.groups = groups_;
  tile.weight = panel.weight;
  tile.sums = panel.sums;
  tile.scale = panel.scale;
  tile.bias = panel.bias;
  tile.pitch = args_.out_features;
  tile.vectors = panel.vectors;
  tile.columns = panel.columns;
  tile.low = args_.out_min_f;
  tile.high = args_.out_max_f;
  tile.fused = args_.fused != 0;
  tile.same_params = args_.row_wise == 0;
  const int8_t* next = panel.weight + panel_bytes(panel);
  const int64_t tiles = ceil_div(end - begin, kernel_.rows);
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t row = begin + part_begin(end - begin, tiles, t);
    tile.rows = static_cast<int>(begin + part_begin(end - begin, tiles, t + 1) - row);
    tile.q = block.q + row * q_bytes_;
    tile.x_scale = block.scale + row;
    tile.x_zero = block.zero + row;
    tile.out = out + (block.first + row) * args_.out_features + panel.output;
    // The first tiles bring the next panel near, which lies behind this one; the others their own, which is there.
    const bool first = t * groups_ * 64 < panel_bytes(panel);
    tile.prefetch = first ? next + t * groups_ * 64 : panel.weight;
    kernel_.run(tile);
  }
}

void QlinearDynamic::run(const RunContext& context) const {
  if (args_.rows == 0) return;
  RowBlock block;
  block.q = context.scratch;
  block.scale = reinterpret_cast<float*>(block.q + (block_rows_ + kernel_.row_tile - 1) * q_bytes_);
  block.zero = reinterpret_cast<int32_t*>(block.scale + block_rows_);
  QuantParams params;
  if (args_.row_wise == 0) params = find_params(context, reinterpret_cast<float*>(block.zero + block_rows_));
  for (int64_t first = 0; first < args_.rows; first += block_rows_) {
    block.first = first;
    block.rows = std::min(block_rows_, args_.rows - first);
    quantize(context, block, args_.row_wise == 0 ? &params : nullptr);
    multiply(context, block);
  }
}

void check(const qt_linear_dynamic_args& a) {
  require(a.rows >= 0, "the number of rows is negative");
  require(a.in_features >= 1 && a.out_features >= 1, "the numbers of features must be 1 or more");
  require(a.weight != nullptr, "the weight is missing");
  require(a.w_scale != nullptr, "the weight's scale is missing");
  checked_product({a.in_features, a.out_features});
  checked_product({a.rows, a.in_features, 4});
  checked_product({a.rows, a.out_features, 4});
}

}  // namespace

std::unique_ptr<Op> make_qlinear_dynamic(const qt_op& op, const MakeContext& context) {
  const qt_linear_dynamic_args& args = *static_cast<const qt_linear_dynamic_args*>(op.args);
  check(args);
  const auto usable = [&](const Row<const QlinearDynamicKernel*>& row) {
    const bool is_long = row.kernel->depth <= kShortDepth || args.in_features > kShortDepth;
    if (row.kernel->reduced && args.reduce_range == 0) return false;
    return context.kernel != nullptr || (args.rows >= row.kernel->least_rows && is_long);
  };
  return std::make_unique<QlinearDynamic>(args, select_row(kRows, context.isa, context.kernel, usable), context.memory);
}

void list_qlinear_dynamic(std::vector<KernelInfo>* list) { list_rows("qlinear_dynamic", kRows, list); }

}  // namespace qtool
