#include "qconv/qconv.h"

#include <algorithm>
#include <cstring>

#include "core/rows.h"
#include "qconv/after.h"
#include "qconv/pack.h"
#include "qconv/pixels.h"
#include "qconv/shape.h"

namespace qtool {

std::unique_ptr<Op> make_qdwconv(const qt_op& op, const MakeContext& context);

namespace {

constexpr Row<const QconvKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "qconv/kernels.inc"
#undef QT_KERNEL
};

// The panels of a chunk are to stay in the L2 cache beside its pixels, which are walked once a panel.
constexpr int64_t kPanelBytes = 256 << 10;
constexpr int64_t kChunkRows = 192, kLeastChunks = 8;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

class Qconv final : public Op {
 public:
  Qconv(const qt_conv_args& args, const Row<const QconvKernel*>& row, const MakeContext& context);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override;

 private:
  void cut_chunks();
  int64_t tile_bytes() const;
  int64_t pointer_bytes() const;
  QconvTile* place_tiles(const uint8_t* x, int64_t first, int64_t rows, uint8_t* scratch) const;
  void run_chunk(const RunContext& context, int64_t chunk, int thread) const;
  void run_panel(const QconvPanel& panel, QconvJob job, const uint8_t* residual) const;

  Row<const QconvKernel*> row_;
  const QconvKernel& kernel_;
  Extents extents_;
  QconvFinish finish_;
  QconvAfter after_;
  QconvPixels pixels_;
  QconvDepth depth_;
  std::vector<QconvPanel> panels_;
  int64_t rows_, pitch_;  // pixels and channels of the output
  int residual_;
  int64_t row_parts_, panel_parts_, most_rows_;  // chunks are row_parts x panel_parts
};

Qconv::Qconv(const qt_conv_args& args, const Row<const QconvKernel*>& row, const MakeContext& context)
    : row_(row), kernel_(*row.kernel), extents_(qconv_extents(args)), finish_(qconv_finish(args)),
      after_(args, row.isa), pixels_(args, context.memory), pitch_(args.out_channels), residual_(args.residual) {
  const int64_t length = args.groups == 1 ? pixels_.length() : args.in_channels / args.groups;
  depth_ = {pixels_.taps(), length, round_up(length, 4)};
  panels_ = pack_qconv(args, depth_, kernel_, context.memory);
  rows_ = extents_.output / pitch_;
  cut_chunks();
}

// Panels share a chunk while their weights fit the cache together, rows as many as make packing the pointers cheap.
void Qconv::cut_chunks() {
  const int64_t panels = panels_.size();
  const int64_t panel_bytes = depth_.taps * depth_.padded * kernel_.columns * kernel_.element_bytes;
  row_parts_ = std::max<int64_t>(1, ceil_div(rows_, kChunkRows));
  panel_parts_ = ceil_div(panels, std::max<int64_t>(1, kPanelBytes / panel_bytes));
  panel_parts_ = std::min(panels, std::max(panel_parts_, ceil_div(kLeastChunks, row_parts_)));
  most_rows_ = ceil_div(rows_, row_parts_);
}

int64_t Qconv::tile_bytes() const {
  return round_up(ceil_div(most_rows_, kernel_.rows) * static_cast<int64_t>(sizeof(QconvTile)), 64);
}

int64_t Qconv::pointer_bytes() const {
  const int64_t tiles = ceil_div(most_rows_, kernel_.rows);
  return round_up(checked_product({tiles, kernel_.rows, depth_.taps, sizeof(uint8_t*)}), 64);
}

// A thread's: the tiles, their pointers, the copied taps.
int64_t Qconv::scratch_bytes() const {
  return tile_bytes() + pointer_bytes() + checked_product({most_rows_, pixels_.patch_bytes()});
}

void Qconv::run(const RunContext& context) const {
  if (rows_ == 0) return;
  context.pool->parallel(row_parts_ * panel_parts_,
                         [&](int64_t chunk, int thread) { run_chunk(context, chunk, thread); });
}

void Qconv::run_chunk(const RunContext& context, int64_t chunk, int thread) const {
  const int64_t row_part = chunk % row_parts_, panel_part = chunk / row_parts_;
  const int64_t first = part_begin(rows_, row_parts_, row_part);
  const int64_t rows = part_begin(rows_, row_parts_, row_part + 1) - first;
  uint8_t* scratch = context.scratch + thread * context.scratch_stride;
  QconvJob job = {};
  job.tiles = reinterpret_cast<const QconvTile*>(scratch);
  job.end = place_tiles(static_cast<const uint8_t*>(context.inputs[0]), first, rows, scratch);
  job.taps = depth_.taps;
  job.length = depth_.padded;
  job.finish = &finish_;
  job.out = static_cast<uint8_t*>(context.output);
  job.pitch = pitch_;
  const uint8_t* residual = residual_ != 0 ? static_cast<const uint8_t*>(context.inputs[1]) : nullptr;
  const int64_t panels = panels_.size();
  const int64_t end = part_begin(panels, panel_parts_, panel_part + 1);
  for (int64_t p = part_begin(panels, panel_parts_, panel_part); p < end; p++) run_panel(panels_[p], job, residual);
}

// Cuts the pixels first .. first + rows - 1 into tiles of nearly equal size; returns the end of the tiles.
QconvTile* Qconv::place_tiles(const uint8_t* x, int64_t first, int64_t rows, uint8_t* scratch) const {
  const uint8_t** pointers = reinterpret_cast<const uint8_t**>(scratch + tile_bytes());
  uint8_t* patch = scratch + tile_bytes() + pointer_bytes();
  const int64_t count = ceil_div(rows, kernel_.rows), least = rows / count, larger = rows % count;
  QconvTile* tile = reinterpret_cast<QconvTile*>(scratch);
  QconvPixels::Place place = pixels_.place(x, first);
  for (int64_t t = 0; t < count; t++, tile++) {
    tile->rows = least + (t < larger ? 1 : 0);
    tile->first = first;
    tile->pixels = pointers;
    tile->step = pixels_.fill(&place, static_cast<int>(tile->rows), kernel_.rows, pointers, &patch);
    tile->offsets = pixels_.offsets(tile->step);
    pointers += tile->step == 0 ? kernel_.rows : kernel_.rows * depth_.taps;
    first += tile->rows;
  }
  return tile;
}

void Qconv::run_panel(const QconvPanel& panel, QconvJob job, const uint8_t* residual) const {
  job.offset = panel.input;
  job.vectors = panel.vectors;
  job.columns = panel.columns;
  job.weight = panel.weight;
  job.start = panel.start;
  job.bias = panel.bias;
  job.multiplier = panel.multiplier;
  job.out += panel.output;
  if (residual != nullptr) residual += panel.output;
  if (residual_ == 1) job.residual = residual;
  kernel_.run(job);
  const QconvTile& last = job.end[-1];
  const int64_t rows = last.first + last.rows - job.tiles->first, at = job.tiles->first * pitch_;
  after_.run(job.out + at, residual_ == 2 ? residual + at : nullptr, rows, panel.columns, pitch_);
}

}  // namespace

std::unique_ptr<Op> make_qconv(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_qconv(args);
  const bool named = context.kernel != nullptr;
  if (named ? std::strncmp(context.kernel, "qdwconv_", 8) == 0 : is_depthwise(args)) return make_qdwconv(op, context);
  const int outputs = args.out_channels / args.groups;
  const auto usable = [&](const Row<const QconvKernel*>& row) {
    return context.kernel != nullptr || !row.kernel->narrow || outputs <= row.kernel->columns;
  };
  return std::make_unique<Qconv>(args, select_row(kRows, context.isa, context.kernel, usable), context);
}

void list_qconv(std::vector<KernelInfo>* list) { list_rows("qconv", kRows, list); }

}  // namespace qtool
