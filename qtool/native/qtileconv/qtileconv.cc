#include "qtileconv/qtileconv.h"

#include <algorithm>

#include "core/rows.h"
#include "qconv/after.h"
#include "qconv/shape.h"
#include "qtileconv/pack.h"
#include "qtileconv/place.h"

namespace qtool {
namespace {

constexpr Row<const QtileconvKernel*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "qtileconv/kernels.inc"
#undef QT_KERNEL
};

// The rows of a chunk are walked once a panel and so should stay in the L2 cache. Where the weights do not fit it, they
// should be read once for as many rows as do.
constexpr int64_t kWeightBytes = 512 << 10, kFewRowBytes = 128 << 10, kManyRowBytes = 512 << 10;
constexpr int64_t kLeastPixels = 64;  // of a chunk
constexpr int64_t kChunks = 4;        // for each thread, at least

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

// R for the fewest products. Where no other has many less, four row tiles if they are all, so that weights are read
// once, and two elsewhere, which loads least.
int choose_row_tiles(int64_t row_tiles, int64_t column_tiles) {
  int best = row_tiles > 2 && row_tiles <= 4 ? 4 : 2;
  const auto blocks = [&](int r) { return ceil_div(row_tiles, r) * ceil_div(column_tiles, 4 / r); };
  for (const int r : {2, 4, 1}) {
    if (10 * blocks(r) < 9 * blocks(best)) best = r;
  }
  return best;
}

class Qtileconv final : public Op {
 public:
  Qtileconv(const qt_conv_args& args, const Row<const QtileconvKernel*>& row, const MakeContext& context);
  void run(const RunContext& context) const override;
  const char* kernel() const override { return row_.name; }
  Extents extents() const override { return extents_; }
  int64_t scratch_bytes() const override;

 private:
  void cut_chunks(int64_t threads);
  void run_chunk(const RunContext& context, int64_t chunk, int thread) const;
  void run_panels(const RunContext& context, int64_t rows, QtileconvJob job) const;

  Row<const QtileconvKernel*> row_;
  Extents extents_;
  QconvFinish finish_;
  QconvAfter after_;
  TileSource source_;
  int64_t pitch_, offset_;  // of the output's pixels
  int residual_;
  int row_tiles_;
  std::vector<QtileconvPanel> panels_;
  int64_t row_parts_ = 0, panel_parts_ = 0;  // chunks are row_parts x panel_parts
  int64_t most_tiles_ = 0, copy_bytes_ = 0;  // of a chunk
};

Qtileconv::Qtileconv(const qt_conv_args& args, const Row<const QtileconvKernel*>& row, const MakeContext& context)
    : row_(row), extents_(qconv_extents(args)), finish_(qconv_finish(args)), after_(args, row.isa),
      source_(args, row.kernel->gather), pitch_(qconv_pitch(args)), offset_(args.out_offset),
      residual_(args.residual),
      row_tiles_(choose_row_tiles(source_.tiles(), ceil_div(args.out_channels / args.groups, 16))),
      panels_(pack_qtileconv(args, row_tiles_, context.memory)) {
  if (source_.units() * source_.pixels_a_unit() > 0) cut_chunks(context.threads);
}

// A thread is given a part of the pixels or, where the weights are more than the activations, of the weights.
void Qtileconv::cut_chunks(int64_t threads) {
  const int64_t units = source_.units(), panels = panels_.size();
  const int64_t weight_bytes = panels * static_cast<int64_t>(source_.offsets().size()) * (4 / row_tiles_) * 1024;
  const int64_t row_bytes = weight_bytes > kWeightBytes ? kManyRowBytes : kFewRowBytes;
  const int64_t least = ceil_div(kLeastPixels, source_.pixels_a_unit());
  const int64_t most_parts = std::max<int64_t>(1, units / least);
  row_parts_ = ceil_div(units, std::max(least, row_bytes / source_.unit_bytes()));
  panel_parts_ = 1;
  const bool even = panels % threads == 0 || panels >= 4 * threads;
  if (threads > 1 && even && weight_bytes > extents_.inputs[0] + extents_.output) {
    panel_parts_ = std::min(panels, threads);  // no more: each gathers the rows again
  } else if (threads > 1) {
    const int64_t even_parts = round_up(std::max(row_parts_, kChunks * threads), threads);
    row_parts_ = std::max(row_parts_, std::min(even_parts, most_parts));
    panel_parts_ = std::min(panels, ceil_div(threads, row_parts_));
  }
  const int64_t most = ceil_div(units, row_parts_);
  most_tiles_ = round_up(source_.most_tiles(most), row_tiles_);
  copy_bytes_ = source_.copy_bytes(most);
}

// A thread's: where rows begin in the output, where tiles begin, and their copy.
int64_t Qtileconv::scratch_bytes() const { return most_tiles_ * (16 * 8 + 64) + copy_bytes_; }

void Qtileconv::run(const RunContext& context) const {
  context.pool->parallel(row_parts_ * panel_parts_,
                         [&](int64_t chunk, int thread) { run_chunk(context, chunk, thread); });
}

void Qtileconv::run_chunk(const RunContext& context, int64_t chunk, int thread) const {
  uint8_t* scratch = context.scratch + thread * context.scratch_stride;
  int64_t* outputs = reinterpret_cast<int64_t*>(scratch);
  const uint8_t** tiles = reinterpret_cast<const uint8_t**>(scratch + most_tiles_ * 16 * 8);
  uint8_t* copy = scratch + most_tiles_ * (16 * 8 + 64);
  const int64_t row_part = chunk % row_parts_, panel_part = chunk / row_parts_;
  const int64_t begin = part_begin(source_.units(), row_parts_, row_part);
  const int64_t end = part_begin(source_.units(), row_parts_, row_part + 1);
  const QtileconvPanel* panel = panels_.data() + part_begin(panels_.size(), panel_parts_, panel_part);
  const QtileconvPanel* last = panels_.data() + part_begin(panels_.size(), panel_parts_, panel_part + 1);
  QtileconvJob job = {};
  job.row_tiles = row_tiles_;
  job.tiles = tiles;
  job.outputs = outputs;
  job.pitch = source_.pitch();
  job.offsets = source_.offsets().data();
  job.steps = source_.offsets().size();
  for (; panel != last; panel += job.panel_count) {  // those of one group together
    const uint8_t* x = static_cast<const uint8_t*>(context.inputs[0]) + panel->input;
    int64_t count = source_.place(x, begin, end, {tiles, outputs, copy});
    const int64_t rows = count * 16;
    for (; count % row_tiles_ != 0; count++) {
      tiles[count] = tiles[count - 1];
      std::fill(outputs + count * 16, outputs + count * 16 + 16, -1);
    }
    job.blocks = count / row_tiles_;
    job.panels = panel;
    job.panel_count = std::find_if(panel, last, [&](const auto& p) { return p.input != panel->input; }) - panel;
    run_panels(context, rows, job);
  }
}

void Qtileconv::run_panels(const RunContext& context, int64_t rows, QtileconvJob job) const {
  job.finish = &finish_;
  job.out = static_cast<uint8_t*>(context.output) + offset_;
  const uint8_t* residual = residual_ != 0 ? static_cast<const uint8_t*>(context.inputs[1]) : nullptr;
  if (residual_ == 1) job.residual = residual;
  row_.kernel->run(job);
  if (!after_.is_needed()) return;
  const QtileconvPanel &first = job.panels[0], &last = job.panels[job.panel_count - 1];
  const int64_t columns = last.output + last.columns - first.output;
  for (int64_t i = 0, end; i < rows; i = end) {  // neighbours at once
    end = i + 1;
    if (job.outputs[i] < 0) continue;
    while (end < rows && job.outputs[end] == job.outputs[end - 1] + pitch_) end++;
    const int64_t at = job.outputs[i] + first.output;
    after_.run(job.out + at, residual != nullptr ? residual + at : nullptr, end - i, columns, pitch_);
  }
}

}  // namespace

std::unique_ptr<Op> make_qtileconv(const qt_op& op, const MakeContext& context) {
  const qt_conv_args& args = *static_cast<const qt_conv_args*>(op.args);
  check_qconv(args);
  return std::make_unique<Qtileconv>(args, select_row(kRows, context), context);
}

void list_qtileconv(std::vector<KernelInfo>* list) { list_rows("qtileconv", kRows, list); }

}  // namespace qtool
