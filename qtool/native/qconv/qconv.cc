#include "qconv/qconv.h"

#include <algorithm>
#include <cstring>

#include "core/rows.h"
#include "qconv/after.h"
#include "qconv/pack.h"
#include "qconv/pixels.h"
#include "qconv/shape.h"
#include "sconv/shape.h"

namespace qtool {

std::unique_ptr<Op> make_qdwconv(const qt_op& op, const MakeContext& context);
std::unique_ptr<Op> make_qtileconv(const qt_op& op, const MakeContext& context);
std::unique_ptr<Op> make_qwinograd(const qt_op& op, const MakeContext& context);  // NULL where a row here is better

namespace {

constexpr Row<const QconvKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "qconv/kernels.inc"
#undef QT_KERNEL
};

// The panels of a chunk are to stay in the L2 cache beside its pixels, which are walked once a panel.
constexpr int64_t kPanelBytes = 256 << 10;
// Of split weights, over the steps: with a quarter of more steps all that is gained would be lost.
constexpr double kMostRest = 0.15;
constexpr int64_t kChunkPixels = 192, kLeastChunks = 8, kMostPieces = 1 << 16;
// Of widened pixels, which share the L2 cache with a panel; with fewer pixels weights would be read too often.
constexpr int64_t kWordsBytes = 256 << 10, kLeastWidened = 48;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

// Pixels of one region that are run together.
struct Piece {
  const QconvPixels* pixels;
  const int64_t* taken;
  int64_t region, first, count;
};

class Qconv final : public Op {
 public:
  Qconv(const qt_conv_args& args, const Row<const QconvKernel*>& row, const MakeContext& context);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override {
    return tile_bytes_ + output_bytes_ + pointer_bytes_ + patch_bytes_ + words_bytes_;
  }

 private:
  struct Job;
  int64_t chunk_pixels() const;
  void cut_pieces();
  void cut_chunks(int threads);
  void measure_scratch();
  void run_chunk(const RunContext& context, int64_t chunk, int thread) const;
  void place_tiles(const uint8_t* x, const Piece* pieces, int64_t count, uint8_t* scratch) const;
  void run_piece(const QconvPanel& panel, const Piece& piece, QconvJob job, bool widen) const;
  void run_after(const RunContext& context, const int64_t* outputs, int64_t count, int64_t first, int64_t end) const;
  int64_t tiles_of(const Piece& piece) const { return ceil_div(piece.count, kernel_.rows); }

  Row<const QconvKernel*> row_;
  const QconvKernel& kernel_;
  Extents extents_;
  QconvFinish finish_;
  QconvAfter after_;
  QconvDepth depth_;
  int64_t pitch_, offset_;  // of the output's pixels
  int64_t chunk_pixels_;
  int residual_;
  std::vector<QconvPixels> regions_;
  std::vector<std::vector<int64_t>> taken_;  // which taps each region walks
  std::vector<QconvPanel> panels_;
  std::vector<Piece> pieces_;
  std::vector<int64_t> chunk_begins_;  // row_parts_ + 1 indices of pieces
  int64_t row_parts_, panel_parts_;    // chunks are row_parts x panel_parts
  int64_t row_groups_;                 // parts of the picture that come one after the other: all panels of one, then the next
  int64_t words_pitch_;                // of a widened pixel, or 0
  int64_t tile_bytes_ = 0, output_bytes_ = 0, pointer_bytes_ = 0, patch_bytes_ = 0, words_bytes_ = 0;  // of the largest chunk
};

QconvDepth depth_of(const qt_conv_args& a) {
  const int64_t channels = a.in_channels / a.groups;
  const int64_t length = has_joined_taps(a) ? a.kernel_width * channels : channels;
  return {a.kernel_height * (a.kernel_width * channels / length), length, round_up(length, 4)};
}

// Whole vectors and, for rows not to fall on the same lines of the L1 cache, another line.
int64_t words_pitch(const QconvDepth& depth) {
  const int64_t bytes = checked_product({depth.taps, depth.padded, 2});
  return round_up(bytes, 32) + (bytes >= 512 ? 64 : 0);
}

// Which of all taps a region walks.
std::vector<int64_t> taken_taps(const QconvRegion& region, int64_t taps_a_row) {
  std::vector<int64_t> taken;
  for (int64_t ky = region.ky; ky < region.ky + region.kernel_height; ky++) {
    const int64_t end = taps_a_row == 1 ? 1 : region.kx + region.kernel_width;
    for (int64_t kx = taps_a_row == 1 ? 0 : region.kx; kx < end; kx++) taken.push_back(ky * taps_a_row + kx);
  }
  return taken;
}

const uint8_t* outside_bytes(const qt_conv_args& a, Memory* memory) {
  const int64_t bytes = checked_product({a.in_channels, has_joined_taps(a) ? a.kernel_width : 1});
  uint8_t* row = memory->allocate(bytes);
  std::memset(row, a.x_zero, bytes);
  return row;
}

Qconv::Qconv(const qt_conv_args& args, const Row<const QconvKernel*>& row, const MakeContext& context)
    : row_(row), kernel_(*row.kernel), extents_(qconv_extents(args)), finish_(qconv_finish(args)),
      after_(args, row.isa), depth_(depth_of(args)), pitch_(qconv_pitch(args)), offset_(args.out_offset),
      residual_(args.residual) {
  const uint8_t* outside = outside_bytes(args, context.memory);
  for (const QconvRegion& region : cut_regions(args, has_joined_taps(args), kernel_.rows / 2)) {
    regions_.emplace_back(args, region, outside);
    taken_.push_back(taken_taps(region, depth_.taps / args.kernel_height));
  }
  panels_ = pack_qconv(args, depth_, taken_, kernel_, context.memory);
  words_pitch_ = kernel_.widen != nullptr ? words_pitch(depth_) : 0;
  cut_pieces();
  cut_chunks(context.threads);
  measure_scratch();
}

// As many pixels as make finding them cheap; of few panels fewer, so that chunks are even in number and threads end
// together.
int64_t Qconv::chunk_pixels() const {
  int64_t all = 0;
  for (const QconvPixels& region : regions_) all += region.pixels();
  const int64_t panels = panels_.size();
  const int64_t most = words_pitch_ == 0 ? kChunkPixels
                                         : std::clamp(kWordsBytes / words_pitch_, kLeastWidened, kChunkPixels);
  int64_t parts = std::max<int64_t>(1, ceil_div(all, most));
  if (panels * parts >= kLeastChunks) return most;
  while ((panels * parts < kLeastChunks / 2 || panels * parts % 2 != 0) && all / parts > 3 * kernel_.rows) parts++;
  return std::max<int64_t>(1, ceil_div(all, parts));
}

void Qconv::cut_pieces() {
  chunk_pixels_ = chunk_pixels();
  for (size_t r = 0; r < regions_.size(); r++) {
    const int64_t pixels = regions_[r].pixels(), parts = std::min(ceil_div(pixels, chunk_pixels_), kMostPieces);
    for (int64_t part = 0; part < parts; part++) {
      const int64_t first = part_begin(pixels, parts, part), end = part_begin(pixels, parts, part + 1);
      pieces_.push_back({&regions_[r], taken_[r].data(), static_cast<int64_t>(r), first, end - first});
    }
  }
  // Small pieces first, so that they come into the same chunks.
  std::stable_sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) { return a.count < b.count; });
}

// Panels share a chunk while their weights fit the cache together. A thread is given a part of the picture, which it has
// in its cache from the operator before, or where there is more of the weights than of the pictures a part of the weights.
void Qconv::cut_chunks(int threads) {
  int64_t pixels = chunk_pixels_;
  for (size_t p = 0; p < pieces_.size(); p++) {
    pixels += pieces_[p].count;
    if (pixels <= chunk_pixels_) continue;
    chunk_begins_.push_back(p);
    pixels = pieces_[p].count;
  }
  row_parts_ = chunk_begins_.size();
  chunk_begins_.push_back(pieces_.size());
  const int64_t panels = panels_.size();
  const int64_t panel_bytes = depth_.taps * depth_.padded * kernel_.columns;
  panel_parts_ = ceil_div(panels, std::max<int64_t>(1, kPanelBytes / panel_bytes));
  panel_parts_ = std::min(panels, std::max(panel_parts_, ceil_div(kLeastChunks, std::max<int64_t>(1, row_parts_))));
  const bool even = panels % threads == 0 || panels >= 4 * threads;
  const bool by_rows = !even || panel_bytes * panels <= extents_.inputs[0] + extents_.output;
  row_groups_ = by_rows ? std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, row_parts_)) : 1;
}

void Qconv::measure_scratch() {
  for (int64_t chunk = 0; chunk < row_parts_; chunk++) {
    int64_t tiles = 0, pixels = 0, pointers = 0, patch = 0;
    for (int64_t p = chunk_begins_[chunk]; p < chunk_begins_[chunk + 1]; p++) {
      const Piece& piece = pieces_[p];
      tiles += tiles_of(piece);
      pixels += piece.count;
      pointers += checked_product({tiles_of(piece), kernel_.rows, piece.pixels->taps()});
      patch += checked_product({piece.count, piece.pixels->patch_bytes()});
    }
    tile_bytes_ = std::max(tile_bytes_, round_up(tiles * static_cast<int64_t>(sizeof(QconvTile)), 64));
    output_bytes_ = std::max(output_bytes_, round_up(pixels * 8, 64));
    pointer_bytes_ = std::max(pointer_bytes_, round_up(pointers * 8, 64));
    patch_bytes_ = std::max(patch_bytes_, round_up(patch, 64));
    words_bytes_ = std::max(words_bytes_, checked_product({pixels, words_pitch_}));
  }
}

void Qconv::run(const RunContext& context) const {
  if (row_parts_ == 0) return;
  context.pool->parallel(row_parts_ * panel_parts_,
                         [&](int64_t chunk, int thread) { run_chunk(context, chunk, thread); });
}

void Qconv::run_chunk(const RunContext& context, int64_t chunk, int thread) const {
  int64_t group = 0;
  while (chunk >= part_begin(row_parts_, row_groups_, group + 1) * panel_parts_) group++;
  const int64_t first_row = part_begin(row_parts_, row_groups_, group);
  const int64_t rows = part_begin(row_parts_, row_groups_, group + 1) - first_row;
  const int64_t row_part = first_row + (chunk - first_row * panel_parts_) % rows;
  const int64_t panel_part = (chunk - first_row * panel_parts_) / rows;
  const Piece* pieces = pieces_.data() + chunk_begins_[row_part];
  const int64_t piece_count = chunk_begins_[row_part + 1] - chunk_begins_[row_part];
  uint8_t* scratch = context.scratch + thread * context.scratch_stride;
  place_tiles(static_cast<const uint8_t*>(context.inputs[0]), pieces, piece_count, scratch);
  QconvJob job = {};
  job.length = depth_.padded;
  job.words_pitch = words_pitch_;
  job.finish = &finish_;
  job.out = static_cast<uint8_t*>(context.output) + offset_;
  job.residual = residual_ == 1 ? static_cast<const uint8_t*>(context.inputs[1]) : nullptr;
  const int64_t panels = panels_.size();
  const int64_t first = part_begin(panels, panel_parts_, panel_part);
  const int64_t end = part_begin(panels, panel_parts_, panel_part + 1);
  for (int64_t p = first; p < end; p++) {
    job.end = reinterpret_cast<const QconvTile*>(scratch);
    const bool widen = kernel_.widen != nullptr && (p == first || panels_[p].input != panels_[p - 1].input);
    for (const Piece* piece = pieces; piece != pieces + piece_count; piece++) {
      job.tiles = job.end;
      job.end = job.tiles + tiles_of(*piece);
      run_piece(panels_[p], *piece, job, widen);
    }
  }
  if (!after_.is_needed()) return;
  const int64_t* outputs = reinterpret_cast<const int64_t*>(scratch + tile_bytes_);
  for (const Piece* piece = pieces; piece != pieces + piece_count; outputs += piece->count, piece++) {
    run_after(context, outputs, piece->count, first, end);
  }
}

// Cuts the pixels of the pieces into tiles of nearly equal size.
void Qconv::place_tiles(const uint8_t* x, const Piece* pieces, int64_t count, uint8_t* scratch) const {
  QconvTile* tile = reinterpret_cast<QconvTile*>(scratch);
  int64_t* outputs = reinterpret_cast<int64_t*>(scratch + tile_bytes_);
  const uint8_t** pointers = reinterpret_cast<const uint8_t**>(scratch + tile_bytes_ + output_bytes_);
  uint8_t* patch = scratch + tile_bytes_ + output_bytes_ + pointer_bytes_;
  uint8_t* words = patch + patch_bytes_;
  for (const Piece* piece = pieces; piece != pieces + count; piece++) {
    const QconvPixels& pixels = *piece->pixels;
    const int64_t tiles = tiles_of(*piece), least = piece->count / tiles, larger = piece->count % tiles;
    QconvPixels::Place place = pixels.place(x, piece->first);
    for (int64_t t = 0; t < tiles; t++, tile++) {
      tile->rows = least + (t < larger ? 1 : 0);
      tile->pixels = pointers;
      tile->outputs = outputs;
      tile->step = pixels.fill(&place, static_cast<int>(tile->rows), kernel_.rows, pointers, outputs, &patch);
      tile->offsets = pixels.offsets(tile->step);
      pointers += tile->step == 0 ? kernel_.rows : kernel_.rows * pixels.taps();
      outputs += tile->rows;
      tile->words = words;
      words += tile->rows * words_pitch_;
    }
  }
}

void Qconv::run_piece(const QconvPanel& panel, const Piece& piece, QconvJob job, bool widen) const {
  job.taps = piece.pixels->taps();
  job.taken = piece.taken;
  job.offset = panel.input;
  job.vectors = panel.vectors;
  job.columns = panel.columns;
  job.weight = panel.weight;
  job.tap_bytes = panel.tap_bytes;
  job.rest = &panel.rest;
  job.start = panel.start + piece.region * panel.vectors * kernel_.step;
  job.bias = panel.bias;
  job.multiplier = panel.multiplier;
  job.out += panel.output;
  if (job.residual != nullptr) job.residual += panel.output;
  if (widen) kernel_.widen(job);
  kernel_.run(job);
}

// What follows the panels from `first` on, before `end`, of `count` pixels that begin at `outputs`: neighbours at once.
void Qconv::run_after(const RunContext& context, const int64_t* outputs, int64_t count, int64_t first,
                      int64_t end) const {
  const QconvPanel& last = panels_[end - 1];
  const int64_t channel = panels_[first].output, columns = last.output + last.columns - channel;
  uint8_t* out = static_cast<uint8_t*>(context.output) + offset_ + channel;
  const uint8_t* residual = residual_ != 0 ? static_cast<const uint8_t*>(context.inputs[1]) + channel : nullptr;
  for (int64_t i = 0, next; i < count; i = next) {
    for (next = i + 1; next < count && outputs[next] == outputs[next - 1] + pitch_;) next++;
    const int64_t at = outputs[i];
    after_.run(out + at, residual != nullptr ? residual + at : nullptr, next - i, columns, pitch_);
  }
}

}  // namespace

std::unique_ptr<Op> make_qconv(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_qconv(args);
  const auto goes_to = [&](const char* family, bool fits) {
    return context.kernel != nullptr ? std::strncmp(context.kernel, family, std::strlen(family)) == 0 : fits;
  };
  if (goes_to("qdwconv_", is_depthwise(args))) return make_qdwconv(op, context);
  if (goes_to("qtileconv_", context.isa >= QT_ISA_AMX && fills_tiles(args))) return make_qtileconv(op, context);
  if (goes_to("qwinograd_", true)) {
    if (auto winograd = make_qwinograd(op, context)) return winograd;
  }
  const int outputs = args.out_channels / args.groups;
  const auto usable = [&](const Row<const QconvKernel*>& row) {
    if (context.kernel != nullptr) return true;
    if (row.kernel->split) {  // the instruction sets above have a product that needs no splitting
      return row.isa == context.isa && qconv_rest_share(args, depth_of(args), *row.kernel) <= kMostRest;
    }
    return !row.kernel->narrow || outputs <= row.kernel->columns;
  };
  return std::make_unique<Qconv>(args, select_row(kRows, context.isa, context.kernel, usable), context);
}

void list_qconv(std::vector<KernelInfo>* list) { list_rows("qconv", kRows, list); }

}  // namespace qtool
