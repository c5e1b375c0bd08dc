#include "qwinograd/qwinograd.h"

#include <algorithm>
#include <cstring>

#include "core/rows.h"
#include "qconv/after.h"
#include "qconv/shape.h"
#include "qwinograd/choice.h"
#include "qwinograd/pack.h"

namespace qtool {
namespace {

constexpr Row<const QwinogradKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "qwinograd/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kBlockPairs = 128;   // U of two rows of the grid stays beside V in the L2 cache
constexpr int64_t kLeastTiles = 16;    // of a chunk that is made smaller for more threads
constexpr double kGain = 0.95;         // at most this much of the time of the other kernels: it is not known better
constexpr int64_t kLine = 64;
constexpr int64_t kChunks = 4;  // for each thread, at least

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

// At least `bytes`, and an odd number of cache lines: positions that are powers of two apart would share a set.
constexpr int64_t odd_lines(int64_t bytes) { return (ceil_div(bytes, kLine) | 1) * kLine; }

class Qwinograd final : public Op {
 public:
  Qwinograd(const qt_conv_args& args, const Row<const QwinogradKernel*>& row, const MakeContext& context);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override;

 private:
  struct Chunk {
    const uint8_t** pixels;
    QwinogradTile* tiles;
    int16_t *v, *u;
    int32_t* m;
    QwinogradCounts counts;
  };

  int64_t positions() const { return (size_ + 2) * (size_ + 2); }
  void cut_chunks(const qt_conv_args& args, int64_t threads);
  Chunk chunk_in(uint8_t* scratch) const;
  void run_chunk(const RunContext& context, int64_t chunk, int thread) const;
  void place_tiles(const uint8_t* x, int64_t first, int64_t end, Chunk* chunk) const;
  QwinogradCounts no_tiles() const;
  int64_t* count_of(int64_t index, QwinogradCounts* counts) const;
  void place_tile(const uint8_t* x, int64_t index, const uint8_t** pixels, QwinogradTile* tile) const;
  void transform(const Chunk& chunk) const;
  void run_panels(const RunContext& context, const Chunk& chunk, int64_t first, int64_t end) const;
  void run_after(const Chunk& chunk, uint8_t* out, const uint8_t* residual, int64_t columns) const;

  Row<const QwinogradKernel*> row_;
  Extents extents_;
  QconvFinish finish_;
  QconvAfter after_;
  int64_t size_;
  int64_t height_, width_, in_channels_, out_height_, out_width_, out_channels_, pitch_, offset_;
  int64_t pad_top_, pad_left_;
  int64_t channels_;  // of V
  int x_zero_, residual_;
  const uint8_t* outside_;
  std::vector<QwinogradPanel> panels_;
  int64_t lines_, columns_, tiles_;           // tiles of a picture, and of all
  int64_t row_parts_ = 0, panel_parts_ = 1;  // chunks are row_parts x panel_parts
  int64_t most_tiles_ = 0;                   // of a chunk
  int64_t v_pitch_ = 0, u_pitch_ = 0;
};

int64_t tiles_of(const QwinogradCounts& counts) { return counts.bottom + counts.whole + counts.right + counts.corner; }

Qwinograd::Qwinograd(const qt_conv_args& a, const Row<const QwinogradKernel*>& row, const MakeContext& context)
    : row_(row), extents_(qconv_extents(a)), finish_(qconv_finish(a)), after_(a, row.isa), size_(row.kernel->size),
      height_(a.in_height), width_(a.in_width), in_channels_(a.in_channels), out_height_(a.out_height),
      out_width_(a.out_width), out_channels_(a.out_channels), pitch_(qconv_pitch(a)), offset_(a.out_offset),
      pad_top_(a.pad_top), pad_left_(a.pad_left),
      channels_(round_up(a.in_channels, row.kernel->lanes)), x_zero_(a.x_zero), residual_(a.residual),
      panels_(pack_qwinograd(a, row.kernel->columns, context.memory)), lines_(ceil_div(a.out_height, size_)),
      columns_(ceil_div(a.out_width, size_)), tiles_(checked_product({a.batch, lines_, columns_})) {
  uint8_t* outside = context.memory->allocate(channels_);
  std::memset(outside, a.x_zero, channels_);
  outside_ = outside;
  if (tiles_ > 0) cut_chunks(a, context.threads);
  v_pitch_ = odd_lines(checked_product({most_tiles_, channels_, 2})) / 2;
  u_pitch_ = odd_lines(kBlockPairs * row.kernel->columns * 4) / 2;
}

// A thread is given a part of the tiles, where each transforms the weights, or of the panels, where each transforms the
// input, which partly comes from the other threads' caches: measured better with half as many weights as activations.
void Qwinograd::cut_chunks(const qt_conv_args& args, int64_t threads) {
  const int64_t panels = panels_.size();
  row_parts_ = ceil_div(tiles_, qwinograd_chunk_tiles(args, *row_.kernel));
  const bool even = panels % threads == 0 || panels >= 4 * threads;
  if (threads > 1 && even && 2 * 9 * in_channels_ * out_channels_ > extents_.inputs[0] + extents_.output) {
    panel_parts_ = std::min(panels, threads);  // no more: each transforms the input again
  } else if (threads > 1) {
    const int64_t even_parts = round_up(std::max(row_parts_, kChunks * threads), threads);
    row_parts_ = std::max(row_parts_, std::min(even_parts, ceil_div(tiles_, kLeastTiles)));
    panel_parts_ = std::min(panels, ceil_div(threads, row_parts_));
  }
  most_tiles_ = ceil_div(tiles_, row_parts_);
}

int64_t Qwinograd::scratch_bytes() const {
  const int64_t m = positions() * row_.kernel->columns * 4;
  const int64_t tile = positions() * sizeof(uint8_t*) + sizeof(QwinogradTile) + m;
  const int64_t u_bytes = 2 * (size_ + 2) * u_pitch_ * 2;
  return checked_product({positions(), v_pitch_ * 2}) + u_bytes + checked_product({most_tiles_, tile});
}

Qwinograd::Chunk Qwinograd::chunk_in(uint8_t* scratch) const {
  Chunk chunk = {};
  chunk.v = reinterpret_cast<int16_t*>(scratch);
  chunk.u = chunk.v + positions() * v_pitch_;
  chunk.m = reinterpret_cast<int32_t*>(chunk.u + 2 * (size_ + 2) * u_pitch_);
  chunk.pixels = reinterpret_cast<const uint8_t**>(chunk.m + most_tiles_ * positions() * row_.kernel->columns);
  chunk.tiles = reinterpret_cast<QwinogradTile*>(chunk.pixels + most_tiles_ * positions());
  return chunk;
}

void Qwinograd::run(const RunContext& context) const {
  context.pool->parallel(row_parts_ * panel_parts_,
                         [&](int64_t chunk, int thread) { run_chunk(context, chunk, thread); });
}

void Qwinograd::run_chunk(const RunContext& context, int64_t index, int thread) const {
  const int64_t row_part = index % row_parts_, panel_part = index / row_parts_;
  Chunk chunk = chunk_in(context.scratch + thread * context.scratch_stride);
  place_tiles(static_cast<const uint8_t*>(context.inputs[0]), part_begin(tiles_, row_parts_, row_part),
              part_begin(tiles_, row_parts_, row_part + 1), &chunk);
  transform(chunk);
  const int64_t panels = panels_.size(), first = part_begin(panels, panel_parts_, panel_part);
  run_panels(context, chunk, first, part_begin(panels, panel_parts_, panel_part + 1));
}

QwinogradCounts Qwinograd::no_tiles() const {
  const auto taken = [&](int64_t outputs) {
    const int64_t left = outputs % size_;
    return qwinograd_taken(static_cast<int>(size_), static_cast<int>(left != 0 ? left : size_));
  };
  return {0, 0, 0, 0, taken(out_height_), taken(out_width_)};
}

// The count of the tiles that are of this one's kind.
int64_t* Qwinograd::count_of(int64_t index, QwinogradCounts* counts) const {
  const bool below = (index / columns_ % lines_ + 1) * size_ > out_height_;
  const bool beside = (index % columns_ + 1) * size_ > out_width_;
  if (beside) return below ? &counts->corner : &counts->right;
  return below ? &counts->bottom : &counts->whole;
}

void Qwinograd::place_tiles(const uint8_t* x, int64_t first, int64_t end, Chunk* chunk) const {
  QwinogradCounts& counts = chunk->counts = no_tiles();
  for (int64_t index = first; index < end; index++) ++*count_of(index, &counts);
  const int64_t whole_end = counts.bottom + counts.whole;
  QwinogradCounts at = {0, counts.bottom, whole_end, whole_end + counts.right, 0, 0};
  for (int64_t index = first; index < end; index++) {
    const int64_t t = (*count_of(index, &at))++;
    place_tile(x, index, chunk->pixels + t * positions(), chunk->tiles + t);
  }
}

void Qwinograd::place_tile(const uint8_t* x, int64_t index, const uint8_t** pixels, QwinogradTile* tile) const {
  const int64_t image = index / (lines_ * columns_);
  const int64_t top = index / columns_ % lines_ * size_, left = index % columns_ * size_;
  tile->output = ((image * out_height_ + top) * out_width_ + left) * pitch_;
  tile->rows = static_cast<int32_t>(std::min(size_, out_height_ - top));
  tile->columns = static_cast<int32_t>(std::min(size_, out_width_ - left));
  for (int64_t y = top - pad_top_; y < top - pad_top_ + size_ + 2; y++) {
    const bool inside = y >= 0 && y < height_;
    const uint8_t* line = inside ? x + (image * height_ + y) * width_ * in_channels_ : outside_;
    for (int64_t i = left - pad_left_; i < left - pad_left_ + size_ + 2; i++) {
      *pixels++ = inside && i >= 0 && i < width_ ? line + i * in_channels_ : outside_;
    }
  }
}

void Qwinograd::transform(const Chunk& chunk) const {
  QwinogradInput input = {};
  input.pixels = chunk.pixels;
  input.tile = chunk.tiles;
  input.tiles = tiles_of(chunk.counts);
  input.channels = channels_;
  input.x_zero = x_zero_;
  input.v = chunk.v;
  input.pitch = v_pitch_;
  row_.kernel->transform(input);
}

void Qwinograd::run_panels(const RunContext& context, const Chunk& chunk, int64_t first, int64_t end) const {
  QwinogradJob job = {};
  job.v = chunk.v;
  job.v_pitch = v_pitch_;
  job.channels = channels_;
  job.pairs = (in_channels_ + 1) / 2;
  job.tiles = chunk.tiles;
  job.counts = chunk.counts;
  job.u = chunk.u;
  job.u_pitch = u_pitch_;
  job.block = kBlockPairs;
  job.m = chunk.m;
  job.finish = &finish_;
  job.line = out_width_ * pitch_;
  job.pixel = pitch_;
  uint8_t* out = static_cast<uint8_t*>(context.output) + offset_;
  const uint8_t* residual = residual_ != 0 ? static_cast<const uint8_t*>(context.inputs[1]) : nullptr;
  for (int64_t p = first; p < end; p++) {
    job.panel = &panels_[p];
    job.out = out + panels_[p].output;
    if (residual_ == 1) job.residual = residual + panels_[p].output;
    row_.kernel->run(job);
  }
  if (!after_.is_needed()) return;
  const int64_t at = panels_[first].output, columns = panels_[end - 1].output + panels_[end - 1].columns - at;
  run_after(chunk, out + at, residual != nullptr ? residual + at : nullptr, columns);
}

// Tiles that are neighbours at once, a line of pixels after the other.
void Qwinograd::run_after(const Chunk& chunk, uint8_t* out, const uint8_t* residual, int64_t columns) const {
  const QwinogradTile* last = chunk.tiles + tiles_of(chunk.counts);
  for (const QwinogradTile *tile = chunk.tiles, *next; tile != last; tile = next) {
    int64_t pixels = tile->columns;
    for (next = tile + 1; next != last && next->output == tile->output + pixels * pitch_; next++) {
      if (next->rows != tile->rows) break;
      pixels += next->columns;
    }
    for (int64_t y = 0; y < tile->rows; y++) {
      const int64_t at = tile->output + y * out_width_ * pitch_;
      const uint8_t* other = residual != nullptr ? residual + at : nullptr;
      if (columns == pitch_) {
        after_.run(out + at, other, 1, pixels * columns, pixels * columns);
      } else {
        after_.run(out + at, other, pixels, columns, pitch_);
      }
    }
  }
}

// The fastest row, or NULL where those of qconv are as fast.
const Row<const QwinogradKernel*>* choose_row(const qt_conv_args& args, int isa) {
  if (isa == QT_ISA_SCALAR || !qwinograd_has_shape(args)) return nullptr;
  const Row<const QwinogradKernel*>* best = nullptr;
  double least = kGain * qconv_cycles(args, isa);
  for (const Row<const QwinogradKernel*>& row : kRows) {
    const double cycles = qwinograd_cycles(args, *row.kernel);
    if (row.isa != isa || cycles >= least || !qwinograd_is_exact(args, row.kernel->shift)) continue;
    best = &row;
    least = cycles;
  }
  return best;
}

}  // namespace

std::unique_ptr<Op> make_qwinograd(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_qconv(args);
  if (context.kernel == nullptr) {
    const auto* row = choose_row(args, context.isa);
    return row != nullptr ? std::make_unique<Qwinograd>(args, *row, context) : nullptr;
  }
  const auto usable = [&](const Row<const QwinogradKernel*>& row) {
    return qwinograd_has_shape(args) && qwinograd_is_exact(args, row.kernel->shift);
  };
  return std::make_unique<Qwinograd>(args, select_row(kRows, context.isa, context.kernel, usable), context);
}

void list_qwinograd(std::vector<KernelInfo>* list) { list_rows("qwinograd", kRows, list); }

}  // namespace qtool
