#include "sconv/product.h"

#include <algorithm>
#include <cstring>

namespace qtool {
namespace {

// A block of a panel is to stay in the L2 cache (256 KB and more on every CPU with these kernels' instructions)
// beside the pixels of a chunk, which are walked once a block.
constexpr int64_t kBlockBytes = 256 << 10;
constexpr int64_t kChunkRows = 192, kLeastChunks = 8;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

}  // namespace

// A chunk while it runs: pixels `first` .. `first + rows - 1`, in tiles of nearly equal size.
struct SconvProduct::Job {
  const float* x;
  const float* residual;
  float* out;  // of pixel `first`
  int64_t first, rows, tiles;
  const float** pointers;  // [tiles][taps][kernel.rows]
  float* partial;          // [rows][kernel.columns]
};

SconvProduct::SconvProduct(const qt_conv_args& args, const SconvKernel& kernel, Memory* memory, const SconvPlace* place)
    : args_(args), kernel_(kernel), pixels_(args, memory), dense_(place == nullptr),
      rows_(int64_t{args.batch} * args.out_height * args.out_width), group_channels_(args.in_channels / args.groups),
      depth_(int64_t{args.kernel_height} * args.kernel_width * group_channels_) {
  if (place != nullptr) place_ = *place;
  args_.weight = args_.bias_f32 = nullptr;
  cut_panels(memory);
  cut_blocks();
  cut_chunks();
}

void SconvProduct::cut_panels(Memory* memory) {
  const int64_t outputs = args_.out_channels / args_.groups;
  for (int64_t group = 0; group < args_.groups; group++) {
    for (int64_t at = 0; at < outputs; at += kernel_.columns) {
      const int columns = static_cast<int>(std::min<int64_t>(kernel_.columns, outputs - at));
      const int vectors = (columns + kernel_.step - 1) / kernel_.step, width = vectors * kernel_.step;
      float* weight = reinterpret_cast<float*>(memory->allocate(depth_ * width * 4));
      float* bias = reinterpret_cast<float*>(memory->allocate(width * 4));
      panels_.push_back({group * group_channels_, group * outputs + at, columns, vectors, weight, bias});
    }
  }
}

void SconvProduct::cut_blocks() {
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
void SconvProduct::cut_chunks() {
  const int64_t panels = panels_.size();
  const int64_t panel_bytes = pixels_.taps() * pixels_.length() / args_.groups * kernel_.columns * 4;
  row_parts_ = std::max<int64_t>(1, ceil_div(rows_, kChunkRows));
  panel_parts_ = ceil_div(panels, std::max<int64_t>(1, kBlockBytes / panel_bytes));
  panel_parts_ = std::min(panels, std::max(panel_parts_, ceil_div(kLeastChunks, row_parts_)));
  most_rows_ = ceil_div(rows_, row_parts_);
}

// A thread's scratch: the pointers, the sums between blocks, the copied taps, an output that has yet to find its place.
int64_t SconvProduct::pointer_bytes() const {
  const int64_t tiles = ceil_div(most_rows_, kernel_.rows);
  return ceil_div(checked_product({tiles, kernel_.rows, pixels_.taps(), sizeof(float*)}), 64) * 64;
}

int64_t SconvProduct::partial_floats() const { return blocks_.size() > 1 ? most_rows_ * kernel_.columns : 0; }

int64_t SconvProduct::patch_floats() const { return checked_product({most_rows_, pixels_.patch_floats()}); }

int64_t SconvProduct::scratch_bytes() const {
  const int64_t placed = dense_ ? 0 : checked_product({most_rows_, args_.out_channels});
  return pointer_bytes() + (partial_floats() + patch_floats() + placed) * 4;
}

void SconvProduct::run(const RunContext& context, const float* x, const float* residual, float* out) const {
  if (rows_ == 0) return;
  Job whole = {};
  whole.x = x;
  whole.residual = residual;
  whole.out = out;
  context.pool->parallel(row_parts_ * panel_parts_, [&](int64_t chunk, int thread) {
    run_chunk(whole, chunk, context.scratch + thread * context.scratch_stride);
  });
}

void SconvProduct::run_chunk(const Job& whole, int64_t chunk, uint8_t* scratch) const {
  const int64_t row_part = chunk % row_parts_, panel_part = chunk / row_parts_;
  Job job = whole;
  job.first = part_begin(rows_, row_parts_, row_part);
  job.rows = part_begin(rows_, row_parts_, row_part + 1) - job.first;
  job.tiles = ceil_div(job.rows, kernel_.rows);
  job.pointers = reinterpret_cast<const float**>(scratch);
  job.partial = reinterpret_cast<float*>(scratch + pointer_bytes());
  float* patch = job.partial + partial_floats();
  job.out = dense_ ? whole.out + job.first * args_.out_channels : patch + patch_floats();
  for (int64_t tile = 0; tile < job.tiles; tile++) {
    const int64_t from = part_begin(job.rows, job.tiles, tile), to = part_begin(job.rows, job.tiles, tile + 1);
    const float** pointers = job.pointers + tile * pixels_.taps() * kernel_.rows;
    pixels_.fill(job.x, job.first + from, static_cast<int>(to - from), kernel_.rows, pointers, &patch);
  }
  const int64_t panels = panels_.size(), begin = part_begin(panels, panel_parts_, panel_part);
  const int64_t end = part_begin(panels, panel_parts_, panel_part + 1);
  for (int64_t p = begin; p < end; p++) run_panel(job, panels_[p]);
  if (!dense_) put_away(job, whole.out, begin, end);
}

void SconvProduct::run_panel(const Job& job, const SconvPanel& panel) const {
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
      tile.rows = static_cast<int>(to - from);
      tile.pixels = job.pointers + (t * pixels_.taps() + block.tap) * kernel_.rows;
      tile.partial = job.partial + from * kernel_.columns;
      tile.out = job.out + from * tile.pitch + panel.output;
      const int64_t at = (job.first + from) * tile.pitch + panel.output;
      tile.residual = job.residual != nullptr ? job.residual + at : nullptr;
      kernel_.run(tile);
    }
  }
}

// Copies the channels of the panels to where the pixels belong.
void SconvProduct::put_away(const Job& job, float* out, int64_t first_panel, int64_t end_panel) const {
  const int64_t channel = panels_[first_panel].output;
  const int64_t channels = panels_[end_panel - 1].output + panels_[end_panel - 1].columns - channel;
  for (int64_t r = 0; r < job.rows; r++) {
    const int64_t pixel = job.first + r, line = pixel / args_.out_width;
    float* to = out + line / args_.out_height * place_.image + line % args_.out_height * place_.line +
                pixel % args_.out_width * place_.pixel;
    std::memcpy(to + channel, job.out + r * args_.out_channels + channel, channels * 4);
  }
}

}  // namespace qtool
