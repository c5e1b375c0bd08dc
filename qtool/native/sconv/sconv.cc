#include "sconv/sconv.h"

#include <algorithm>
#include <cstring>

#include "core/rows.h"
#include "sconv/matmul.h"
#include "sconv/pixels.h"
#include "sconv/shape.h"

namespace qtool {

std::unique_ptr<Op> make_sdwconv(const qt_op& op, const MakeContext& context);

namespace {

constexpr Row<const SconvKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "sconv/kernels.inc"
#undef QT_KERNEL
};

// A block of a panel is to stay in the L2 cache (256 KB and more on every CPU with these kernels' instructions)
// beside the pixels of a chunk, which are walked once a block.
constexpr int64_t kBlockBytes = 256 << 10;
constexpr int64_t kChunkRows = 192, kLeastChunks = 8;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

// Up to kernel.columns output channels of one group.
struct Panel {
  int64_t input, output;  // first channel
  int columns, vectors;
  const float* weight;
  const float* bias;
};

// A range of k: whole taps, or a part of one.
struct Block {
  int64_t tap, taps, offset, length;
  int64_t depth;  // k where it begins
};

class Sconv final : public Op {
 public:
  Sconv(const qt_conv_args& args, const Row<const SconvKernel*>& row, Memory* memory);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return sconv_extents(args_); }
  int64_t scratch_bytes() const override;

 private:
  struct Job;
  void cut_panels(const qt_conv_args& args, Memory* memory);
  void cut_blocks();
  void cut_chunks();
  int64_t pointer_bytes() const;
  int64_t partial_floats() const;
  void run_chunk(const RunContext& context, int64_t chunk, int thread) const;
  void run_panel(const Job& job, const Panel& panel) const;

  qt_conv_args args_;  // without its arrays
  Row<const SconvKernel*> row_;
  const SconvKernel& kernel_;
  SconvPixels pixels_;
  int64_t rows_, group_channels_;  // pixels of the output; input channels of a group
  std::vector<Panel> panels_;
  std::vector<Block> blocks_;
  int64_t row_parts_, panel_parts_, most_rows_;  // chunks are row_parts x panel_parts
};

// A chunk while it runs: pixels `first` .. `first + rows - 1`, in tiles of nearly equal size.
struct Sconv::Job {
  int64_t first, rows, tiles;
  const float** pointers;  // [tiles][taps][kernel.rows]
  float* partial;          // [rows][kernel.columns]
  const float* residual;
  float* out;
};

Sconv::Sconv(const qt_conv_args& args, const Row<const SconvKernel*>& row, Memory* memory)
    : args_(args), row_(row), kernel_(*row.kernel), pixels_(args, memory),
      rows_(int64_t{args.batch} * args.out_height * args.out_width), group_channels_(args.in_channels / args.groups) {
  cut_panels(args, memory);
  cut_blocks();
  cut_chunks();
  args_.weight = args_.bias_f32 = nullptr;
}

// Packs [columns][depth] to [depth][width]; the rest of each row stays zero.
void pack(const float* weight, int64_t depth, int columns, int width, float* packed) {
  for (int64_t k = 0; k < depth; k++) {
    for (int c = 0; c < columns; c++) packed[k * width + c] = weight[c * depth + k];
  }
}

void Sconv::cut_panels(const qt_conv_args& args, Memory* memory) {
  const int64_t depth = int64_t{args.kernel_height} * args.kernel_width * group_channels_;
  const int64_t outputs = args.out_channels / args.groups;
  for (int64_t group = 0; group < args.groups; group++) {
    for (int64_t at = 0; at < outputs; at += kernel_.columns) {
      const int columns = static_cast<int>(std::min<int64_t>(kernel_.columns, outputs - at));
      const int vectors = (columns + kernel_.step - 1) / kernel_.step, width = vectors * kernel_.step;
      const int64_t output = group * outputs + at;
      float* weight = reinterpret_cast<float*>(memory->allocate(depth * width * 4));
      float* bias = reinterpret_cast<float*>(memory->allocate(width * 4));
      pack(static_cast<const float*>(args.weight) + output * depth, depth, columns, width, weight);
      if (args.bias_f32 != nullptr) std::memcpy(bias, args.bias_f32 + output, columns * 4);
      panels_.push_back({group * group_channels_, output, columns, vectors, weight, bias});
    }
  }
}

void Sconv::cut_blocks() {
  const int64_t most = kBlockBytes / (kernel_.columns * 4);
  const int64_t length = args_.groups == 1 ? pixels_.length() : group_channels_;
  const int64_t tap_parts = ceil_div(length, most), taps_a_block = std::max<int64_t>(1, most / length);
  for (int64_t tap = 0; tap < pixels_.taps(); tap += taps_a_block) {
    const int64_t taps = std::min(taps_a_block, pixels_.taps() - tap);
    for (int64_t part = 0; part < tap_parts; part++) {
      const int64_t from = part_begin(length, tap_parts, part), to = part_begin(length, tap_parts, part + 1);
      blocks_.push_back({tap, taps, from, to - from, tap * length + from});
    }
  }
}

// Panels share a chunk while their weights fit the cache together, rows as many as make packing the pointers cheap.
void Sconv::cut_chunks() {
  const int64_t panels = panels_.size();
  const int64_t panel_bytes = pixels_.taps() * pixels_.length() / args_.groups * kernel_.columns * 4;
  row_parts_ = std::max<int64_t>(1, ceil_div(rows_, kChunkRows));
  panel_parts_ = ceil_div(panels, std::max<int64_t>(1, kBlockBytes / panel_bytes));
  panel_parts_ = std::min(panels, std::max(panel_parts_, ceil_div(kLeastChunks, row_parts_)));
  most_rows_ = ceil_div(rows_, row_parts_);
}

// A thread's scratch: the pointers, the sums between blocks, the copied taps.
int64_t Sconv::pointer_bytes() const {
  const int64_t tiles = ceil_div(most_rows_, kernel_.rows);
  return ceil_div(checked_product({tiles, kernel_.rows, pixels_.taps(), sizeof(float*)}), 64) * 64;
}

int64_t Sconv::partial_floats() const { return blocks_.size() > 1 ? most_rows_ * kernel_.columns : 0; }

int64_t Sconv::scratch_bytes() const {
  return pointer_bytes() + (partial_floats() + checked_product({most_rows_, pixels_.patch_floats()})) * 4;
}

void Sconv::run(const RunContext& context) const {
  if (rows_ == 0) return;
  context.pool->parallel(row_parts_ * panel_parts_,
                         [&](int64_t chunk, int thread) { run_chunk(context, chunk, thread); });
}

void Sconv::run_chunk(const RunContext& context, int64_t chunk, int thread) const {
  const int64_t row_part = chunk % row_parts_, panel_part = chunk / row_parts_;
  Job job;
  job.first = part_begin(rows_, row_parts_, row_part);
  job.rows = part_begin(rows_, row_parts_, row_part + 1) - job.first;
  job.tiles = ceil_div(job.rows, kernel_.rows);
  uint8_t* scratch = context.scratch + thread * context.scratch_stride;
  job.pointers = reinterpret_cast<const float**>(scratch);
  job.partial = reinterpret_cast<float*>(scratch + pointer_bytes());
  float* patch = job.partial + partial_floats();
  job.residual = args_.residual != 0 ? static_cast<const float*>(context.inputs[1]) : nullptr;
  job.out = static_cast<float*>(context.output);
  for (int64_t tile = 0; tile < job.tiles; tile++) {
    const int64_t from = part_begin(job.rows, job.tiles, tile), to = part_begin(job.rows, job.tiles, tile + 1);
    const float** pointers = job.pointers + tile * pixels_.taps() * kernel_.rows;
    pixels_.fill(static_cast<const float*>(context.inputs[0]), job.first + from, static_cast<int>(to - from),
                 kernel_.rows, pointers, &patch);
  }
  const int64_t panels = panels_.size();
  const int64_t end = part_begin(panels, panel_parts_, panel_part + 1);
  for (int64_t p = part_begin(panels, panel_parts_, panel_part); p < end; p++) run_panel(job, panels_[p]);
}

void Sconv::run_panel(const Job& job, const Panel& panel) const {
  SconvTile tile;
  tile.vectors = panel.vectors;
  tile.columns = panel.columns;
  tile.bias = panel.bias;
  tile.pitch = tile.residual_pitch = args_.out_channels;
  tile.low = args_.out_min_f;
  tile.high = args_.out_max_f;
  for (const Block& block : blocks_) {
    tile.taps = block.taps;
    tile.offset = panel.input + block.offset;
    tile.length = block.length;
    tile.weight = panel.weight + block.depth * panel.vectors * kernel_.step;
    tile.first = &block == &blocks_.front();
    tile.last = &block == &blocks_.back();
    for (int64_t t = 0; t < job.tiles; t++) {
      const int64_t from = part_begin(job.rows, job.tiles, t), to = part_begin(job.rows, job.tiles, t + 1);
      const int64_t at = (job.first + from) * tile.pitch + panel.output;
      tile.rows = static_cast<int>(to - from);
      tile.pixels = job.pointers + (t * pixels_.taps() + block.tap) * kernel_.rows;
      tile.partial = job.partial + from * kernel_.columns;
      tile.out = job.out + at;
      tile.residual = job.residual != nullptr ? job.residual + at : nullptr;
      kernel_.run(tile);
    }
  }
}

bool is_depthwise(const qt_conv_args& a) {
  return a.groups > 1 && a.groups == a.in_channels && a.groups == a.out_channels;
}

}  // namespace

std::unique_ptr<Op> make_sconv(const qt_op& op, const MakeContext& context) {
  if (op.kind == QT_OP_SMATMUL) {
    return make_smatmul(*static_cast<const qt_matmul_args*>(op.args), select_row(kRows, context));
  }
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_sconv(args);
  const bool named = context.kernel != nullptr;
  if (named ? std::strncmp(context.kernel, "sdwconv_", 8) == 0 : is_depthwise(args)) return make_sdwconv(op, context);
  return std::make_unique<Sconv>(args, select_row(kRows, context), context.memory);
}

void list_sconv(std::vector<KernelInfo>* list) { list_rows("sconv", kRows, list); }

}  // namespace qtool
