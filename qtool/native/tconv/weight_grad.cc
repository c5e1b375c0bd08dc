// The gradient of the weights as a matrix product whose inner axis are the output's pixels: rows are (ky, kx, i), columns
// are output channels. The kernels of sconv walk runs of floats, so the input is transposed to [i][line][column], a block
// of the picture at a time, with zeros around it and the columns sorted by their remainder by the stride: then what a tap
// of a line of output pixels sees is one such run. dy is copied to panels as it lies.
//
// A chunk is a part of the blocks and of the rows. It adds its blocks up in its own part of the sums; the parts are added
// in their order at the end.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "sconv/shape.h"
#include "tconv/tconv.h"

namespace qtool {
namespace {

constexpr int64_t kMostColumns = 512, kMostLines = 64;  // output pixels of a block
constexpr int64_t kBlockFloats = 48 << 10;              // of the transposed input: it stays in the L2 cache
constexpr int64_t kStepPixels = 256;                    // a panel of dy of so many stays in the L1 cache
constexpr int64_t kParts = 16, kLeastChunks = 8;
constexpr int64_t kMostPointerBytes = int64_t{1} << 32;
constexpr int64_t kSumFloats = 2 << 20;  // all parts' sums together, unless one alone has more

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where part `index` of `parts` nearly equal parts of `count` begins.
constexpr int64_t part_begin(int64_t count, int64_t parts, int64_t index) {
  return count / parts * index + std::min(index, count % parts);
}

// One axis of the convolution, and of the transposed input under a block.
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;
  int64_t most = 1;  // output positions of a block

  int64_t blocks() const { return ceil_div(out, most); }
  int64_t span(int64_t outputs) const { return (outputs - 1) * stride + (kernel - 1) * dilation + 1; }
  bool sees(int64_t at) const {  // whether a tap sees input positions of this remainder
    for (int64_t k = 0; k < std::min(kernel, stride); k++) {
      if (k * dilation % stride == at % stride) return true;
    }
    return false;
  }
};

// Some output pixels: whole lines of several images, or a part of one image.
struct Block {
  int64_t image, images, y, lines, x, columns;
};

class WeightGrad final : public Op {
 public:
  WeightGrad(const qt_conv_args& args, const TconvRows& rows);
  const char* kernel() const override { return rows_.name(); }
  Extents extents() const override;
  void run(const RunContext& context) const override;

 private:
  struct Thread {  // memory of one thread
    float* x;      // [channels][images][lines][phase][width]
    float* dy;     // [panel][pixel][kernel.columns], the last of a group narrower
    const float** pointers;  // [tile][line][kernel.rows]
  };
  void cut_blocks();
  void cut_chunks();
  void make_threads(Memory* memory, int threads);
  void point(const Thread& thread) const;
  Block block(int64_t index) const;
  int panel_columns(int64_t panel) const;
  int64_t panel_output(int64_t panel) const;
  int64_t panel_width(int64_t panel) const { return ceil_div(panel_columns(panel), kernel_.step) * kernel_.step; }
  int64_t all_panels() const { return groups_ * panels_; }
  int64_t width() const { return across_.most + (across_.span(1) - 1) / across_.stride; }  // of a phase's line
  float* sums(int64_t part, int64_t panel, int64_t tile) const;
  void run_chunk(const RunContext& context, int64_t chunk, const Thread& thread) const;
  void transpose(const float* x, const Block& block, const Thread& thread) const;
  void transpose_line(const float* line, const Block& block, float* to) const;
  void copy_dy(const float* dy, const Block& block, const Thread& thread) const;
  void multiply(const Block& block, bool first, int64_t chunk, const Thread& thread) const;
  void add_up(float* dw, int64_t panel, int64_t tile) const;

  qt_conv_args args_;
  TconvRows rows_;
  const SconvKernel& kernel_;
  Axis down_, across_;
  int64_t batch_, channels_, outputs_, groups_;
  int64_t inputs_, taps_, m_, n_;     // channels of a group; rows and columns of its product
  int64_t images_ = 1;                // of a block
  int64_t lines_, plane_;             // of the transposed input: lines of an image, floats of a channel
  int64_t tiles_, panels_;            // of a group
  int64_t blocks_, parts_, row_parts_;
  bool whole_;  // blocks are whole images: the zeros around them stay where they are
  float* sums_;
  std::vector<Thread> threads_;
};

WeightGrad::WeightGrad(const qt_conv_args& a, const TconvRows& rows)
    : args_(a), rows_(rows), kernel_(*rows.product.kernel),
      down_{a.in_height, a.out_height, a.kernel_height, a.stride_height, a.pad_top, a.dilation_height},
      across_{a.in_width, a.out_width, a.kernel_width, a.stride_width, a.pad_left, a.dilation_width},
      batch_(a.batch), channels_(a.in_channels), outputs_(a.out_channels), groups_(a.groups),
      inputs_(a.in_channels / a.groups), taps_(checked_product({a.kernel_height, a.kernel_width})),
      m_(checked_product({taps_, inputs_})), n_(a.out_channels / a.groups) {
  args_.weight = args_.bias_f32 = nullptr;
  const bool one = taps_ == 1 && down_.stride == 1 && across_.stride == 1 && down_.pad == 0 && across_.pad == 0;
  if (one && down_.in == down_.out && across_.in == across_.out) {  // the pixels are the rows of a matrix
    across_.in = across_.out = batch_ * down_.in * across_.in;
    batch_ = down_.in = down_.out = 1;
  }
  tiles_ = ceil_div(m_, kernel_.rows);
  panels_ = ceil_div(n_, kernel_.columns);
  cut_blocks();
  cut_chunks();
  make_threads(rows.memory, rows.threads);
}

// Blocks of whole lines as far as the transposed input of one stays small, and of several images where these are small.
void WeightGrad::cut_blocks() {
  across_.most = ceil_div(across_.out, std::max<int64_t>(1, ceil_div(across_.out, kMostColumns)));
  across_.most = std::max<int64_t>(1, across_.most);
  const auto line = [&] { return checked_product({channels_, across_.stride, width()}); };
  while (across_.most > 32 && down_.span(1) * line() > kBlockFloats) across_.most = ceil_div(across_.most, 2);
  const int64_t fit = (kBlockFloats / line() - down_.span(1)) / down_.stride + 1;
  down_.most = std::max<int64_t>(1, std::min({fit, down_.out, kMostLines}));
  whole_ = across_.blocks() <= 1 && down_.blocks() <= 1;
  lines_ = down_.span(down_.most);
  if (whole_) {
    const int64_t pixels = std::max<int64_t>(1, down_.out * across_.out), image = checked_product({lines_, line()});
    images_ = std::min({kStepPixels / pixels, kBlockFloats / image, kMostLines / down_.most, batch_});
    images_ = std::max<int64_t>(1, images_);
  }
  blocks_ = ceil_div(batch_, images_) * down_.blocks() * across_.blocks();
  // An odd number of cache lines from channel to channel: else the rows of a tile would share few sets of the cache.
  plane_ = ceil_div(checked_product({images_, lines_, across_.stride, width()}), 16) | 1;
  plane_ *= 16;
}

void WeightGrad::cut_chunks() {
  const int64_t floats = checked_product({all_panels(), tiles_, kernel_.rows * kernel_.columns});
  parts_ = std::max<int64_t>(1, std::min({kParts, blocks_, kSumFloats / floats}));
  row_parts_ = std::min(tiles_, ceil_div(kLeastChunks, parts_));
}

void WeightGrad::make_threads(Memory* memory, int threads) {
  const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(memory->allocate(count * 4)); };
  sums_ = floats(checked_product({parts_, all_panels(), tiles_, kernel_.rows * kernel_.columns}));
  const int64_t pixels = images_ * down_.most * across_.most, lines = images_ * down_.most;
  for (int i = 0; i < threads; i++) {
    Thread thread;
    thread.x = floats(checked_product({channels_, plane_}));
    thread.dy = floats(checked_product({all_panels(), pixels, kernel_.columns}));
    const int64_t bytes = checked_product({tiles_, lines, kernel_.rows, static_cast<int64_t>(sizeof(float*))});
    require(bytes <= kMostPointerBytes, "the weight has too many numbers for a gradient");
    thread.pointers = reinterpret_cast<const float**>(memory->allocate(bytes));
    point(thread);
    threads_.push_back(thread);
  }
}

// Where each row of each tile finds each line of output pixels, in the first group.
void WeightGrad::point(const Thread& thread) const {
  const int64_t lines = images_ * down_.most;
  for (int64_t tile = 0; tile < tiles_; tile++) {
    const int64_t first = part_begin(m_, tiles_, tile), rows = part_begin(m_, tiles_, tile + 1) - first;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t tap = (first + r) / inputs_, channel = (first + r) % inputs_;
      const int64_t at_y = tap / across_.kernel * down_.dilation, at_x = tap % across_.kernel * across_.dilation;
      const int64_t column = at_x % across_.stride * width() + at_x / across_.stride;
      for (int64_t l = 0; l < lines; l++) {
        const int64_t line = l / down_.most * lines_ + l % down_.most * down_.stride + at_y;
        thread.pointers[(tile * lines + l) * kernel_.rows + r] =
            thread.x + channel * plane_ + line * across_.stride * width() + column;
      }
    }
  }
}

Extents WeightGrad::extents() const {
  const Extents forward = sconv_extents(args_);
  return {2, {forward.inputs[0], forward.output}, checked_product({outputs_, m_, 4})};
}

Block WeightGrad::block(int64_t index) const {
  const int64_t x = index % across_.blocks(), y = index / across_.blocks() % down_.blocks();
  const int64_t image = index / across_.blocks() / down_.blocks() * images_;
  return {image, std::min(images_, batch_ - image), y * down_.most, std::min(down_.most, down_.out - y * down_.most),
          x * across_.most, std::min(across_.most, across_.out - x * across_.most)};
}

int WeightGrad::panel_columns(int64_t panel) const {
  return static_cast<int>(std::min<int64_t>(kernel_.columns, n_ - panel % panels_ * kernel_.columns));
}

int64_t WeightGrad::panel_output(int64_t panel) const {
  return panel / panels_ * n_ + panel % panels_ * kernel_.columns;
}

float* WeightGrad::sums(int64_t part, int64_t panel, int64_t tile) const {
  return sums_ + ((part * all_panels() + panel) * tiles_ + tile) * kernel_.rows * kernel_.columns;
}

void WeightGrad::run(const RunContext& context) const {
  float* dw = static_cast<float*>(context.output);
  if (blocks_ == 0) {
    std::memset(dw, 0, outputs_ * m_ * 4);
    return;
  }
  context.pool->parallel(parts_ * row_parts_,
                         [&](int64_t chunk, int thread) { run_chunk(context, chunk, threads_[thread]); });
  context.pool->parallel(all_panels() * row_parts_, [&](int64_t chunk, int) {
    const int64_t part = chunk % row_parts_, end = part_begin(tiles_, row_parts_, part + 1);
    for (int64_t t = part_begin(tiles_, row_parts_, part); t < end; t++) add_up(dw, chunk / row_parts_, t);
  });
}

void WeightGrad::run_chunk(const RunContext& context, int64_t chunk, const Thread& thread) const {
  const int64_t part = chunk / row_parts_, begin = part_begin(blocks_, parts_, part);
  for (int64_t b = begin; b < part_begin(blocks_, parts_, part + 1); b++) {
    const Block now = block(b);
    transpose(static_cast<const float*>(context.inputs[0]), now, thread);
    copy_dy(static_cast<const float*>(context.inputs[1]), now, thread);
    multiply(now, b == begin, chunk, thread);
  }
}

void WeightGrad::transpose(const float* x, const Block& block, const Thread& thread) const {
  const int64_t line_floats = across_.stride * width();
  for (int64_t image = 0; image < block.images; image++) {
    for (int64_t line = 0; line < down_.span(block.lines); line++) {
      const int64_t y = block.y * down_.stride - down_.pad + line;
      if (!down_.sees(line)) continue;
      float* to = thread.x + (image * lines_ + line) * line_floats;
      const bool inside = y >= 0 && y < down_.in;
      if (!whole_ && !inside) {
        for (int64_t c = 0; c < channels_; c++) std::memset(to + c * plane_, 0, line_floats * 4);
      }
      if (inside) transpose_line(x + ((block.image + image) * down_.in + y) * across_.in * channels_, block, to);
    }
  }
}

// One line of the input to [channels][phase][width]: of phase p the columns x * stride - pad + p, stride further on, ...
void WeightGrad::transpose_line(const float* line, const Block& block, float* to) const {
  for (int64_t phase = 0; phase < across_.stride; phase++, to += width()) {
    if (!across_.sees(phase)) continue;
    const int64_t left = block.x * across_.stride - across_.pad + phase;
    const int64_t begin = std::min(width(), left >= 0 ? 0 : ceil_div(-left, across_.stride));
    const int64_t end = std::min(width(), left >= across_.in ? 0 : ceil_div(across_.in - left, across_.stride));
    for (int64_t c = 0; c < channels_ && !whole_; c++) {
      std::memset(to + c * plane_, 0, begin * 4);
      if (end < width()) std::memset(to + c * plane_ + std::max(begin, end), 0, (width() - std::max(begin, end)) * 4);
    }
    if (end <= begin) continue;
    const float* from = line + (left + begin * across_.stride) * channels_;
    rows_.layout->transpose32(reinterpret_cast<const uint32_t*>(from), across_.stride * channels_,
                              reinterpret_cast<uint32_t*>(to + begin), plane_, end - begin, channels_);
  }
}

void WeightGrad::copy_dy(const float* dy, const Block& block, const Thread& thread) const {
  const int64_t pixels = images_ * down_.most * across_.most;
  for (int64_t panel = 0; panel < all_panels(); panel++) {
    const int64_t width = panel_width(panel), columns = panel_columns(panel);
    float* to = thread.dy + panel * pixels * kernel_.columns;
    if (columns < width) std::memset(to, 0, block.images * block.lines * block.columns * width * 4);
    for (int64_t line = 0; line < block.images * block.lines; line++) {
      const int64_t image = block.image + line / block.lines, y = block.y + line % block.lines;
      const float* from = dy + ((image * down_.out + y) * across_.out + block.x) * outputs_ + panel_output(panel);
      for (int64_t i = 0; i < block.columns; i++, to += width) std::memcpy(to, from + i * outputs_, columns * 4);
    }
  }
}

// Adds the block's products to the sums of the chunk's part, for its rows.
void WeightGrad::multiply(const Block& block, bool first, int64_t chunk, const Thread& thread) const {
  const int64_t lines = block.images * block.lines, table = images_ * down_.most, part = chunk % row_parts_;
  const int64_t a_step = std::max<int64_t>(1, kStepPixels / block.columns), pixels = table * across_.most;
  SconvTile tile = {};
  tile.length = block.columns;
  for (int64_t line = 0; line < lines; line += tile.taps) {
    tile.taps = std::min(a_step, lines - line);
    tile.first = first && line == 0;
    for (int64_t panel = 0; panel < all_panels(); panel++) {
      const int64_t width = panel_width(panel);
      tile.offset = panel / panels_ * inputs_ * plane_;
      tile.vectors = static_cast<int>(width / kernel_.step);
      tile.columns = panel_columns(panel);
      tile.weight = thread.dy + (panel * pixels * kernel_.columns) + line * block.columns * width;
      for (int64_t t = part_begin(tiles_, row_parts_, part); t < part_begin(tiles_, row_parts_, part + 1); t++) {
        tile.rows = static_cast<int>(part_begin(m_, tiles_, t + 1) - part_begin(m_, tiles_, t));
        tile.pixels = thread.pointers + (t * table + line) * kernel_.rows;
        tile.partial = sums(chunk / row_parts_, panel, t);
        kernel_.run(tile);
      }
    }
  }
}

// The sum of the parts, turned from [row][column] to [column][row].
void WeightGrad::add_up(float* dw, int64_t panel, int64_t tile) const {
  const int64_t first = part_begin(m_, tiles_, tile), rows = part_begin(m_, tiles_, tile + 1) - first;
  const int64_t width = panel_width(panel);
  float* total = sums(0, panel, tile);
  for (int64_t part = 1; part < parts_; part++) {
    const float* more = sums(part, panel, tile);
    for (int64_t i = 0; i < rows * width; i++) total[i] += more[i];
  }
  float* to = dw + panel_output(panel) * m_ + first;
  for (int64_t c = 0; c < panel_columns(panel); c++) {
    for (int64_t r = 0; r < rows; r++) to[c * m_ + r] = total[r * width + c];
  }
}

}  // namespace

std::unique_ptr<Op> make_weight_grad(const qt_conv_args& args, const TconvRows& rows) {
  return std::make_unique<WeightGrad>(args, rows);
}

}  // namespace qtool
