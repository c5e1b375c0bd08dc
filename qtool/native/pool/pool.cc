// The operators of the family: windows, chunks, choice of the kernels.
#include "pool/pool.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rows.h"

namespace qtool {
namespace {

constexpr Row<const PoolKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "pool/kernels.inc"
#undef QT_KERNEL
};

// A chunk is a line of windows, or where there are few lines a part of its channels: whole registers of the kernels.
constexpr int64_t kLeastChunks = 8, kChannels = 64;

// The part of one axis under a window: positions first, first + step, ... below last, and the size it is divided by.
struct Span {
  int64_t first, last, step, divisor;
};

Span span_of(const qt_pool_args& a, int64_t position, bool vertical) {
  const int64_t size = vertical ? a.in_height : a.in_width, outputs = vertical ? a.out_height : a.out_width;
  if (a.adaptive != 0) {
    const int64_t first = position * size / outputs, last = ((position + 1) * size + outputs - 1) / outputs;
    return {first, last, 1, last - first};
  }
  const int64_t kernel = vertical ? a.kernel_height : a.kernel_width, stride = vertical ? a.stride_height : a.stride_width;
  const int64_t before = vertical ? a.pad_top : a.pad_left, after = vertical ? a.pad_bottom : a.pad_right;
  const int64_t step = vertical ? a.dilation_height : a.dilation_width;
  const int64_t begin = position * stride - before, end = std::min(begin + (kernel - 1) * step + 1, size + after);
  const int64_t first = begin >= 0 ? begin : begin + (-begin + step - 1) / step * step;
  return {first, std::min(end, size), step, end - begin};
}

template <class T>
class PoolOp : public Op {
 public:
  PoolOp(const qt_pool_args& args, const Row<const PoolKernels*>& row) : args_(args), row_(row) {
    const bool is_pool = args.kind == QT_POOL_MAX || args.kind == QT_POOL_AVERAGE;
    require(is_pool, "there is no such pool");
    require(args.in_height > 0 && args.in_width > 0 && args.out_height > 0 && args.out_width > 0, "a pool of no pixels");
    // Every line of windows is looked at before the buffers are: there must not be billions of them.
    require(args.out_height <= 1 << 24 && args.out_width <= 1 << 24 && args.channels > 0, "a pool of too many pixels, or no channels");
    if (args.adaptive == 0) check_window();
    if (sizeof(T) == 1 && args.kind == QT_POOL_AVERAGE) check_scales();
    checked_product({args.batch, args.in_height, args.in_width, args.channels, int64_t{sizeof(T)}});
    checked_product({args.batch, args.out_height, args.out_width, args.channels, int64_t{sizeof(T)}});
    most_taps_ = checked_product({most(true), most(false)});
    require(most_taps_ <= 1 << 23, "a window of more than 2^23 pixels");
    const int64_t wanted = kLeastChunks / std::max<int64_t>(1, int64_t{args.batch} * args.out_height);
    part_channels_ = (args.channels / std::max<int64_t>(1, wanted) + kChannels - 1) / kChannels * kChannels;
    part_channels_ = std::max(part_channels_, kChannels);
  }

  const char* kernel() const override { return row_.name; }

  Extents extents() const override {
    const int64_t pixel = int64_t{args_.channels} * static_cast<int64_t>(sizeof(T));
    const int64_t in = int64_t{args_.batch} * args_.in_height * args_.in_width * pixel;
    return {1, {in}, int64_t{args_.batch} * args_.out_height * args_.out_width * pixel};
  }

  int64_t scratch_bytes() const override { return most_taps_ * static_cast<int64_t>(sizeof(T*)); }

  void run(const RunContext& context) const override {
    const int64_t parts = (args_.channels + part_channels_ - 1) / part_channels_;
    context.pool->parallel(int64_t{args_.batch} * args_.out_height * parts, [&](int64_t chunk, int thread) {
      const T** taps = reinterpret_cast<const T**>(context.scratch + thread * context.scratch_stride);
      const int64_t first = chunk % parts * part_channels_;
      run_line(static_cast<const T*>(context.inputs[0]) + first, static_cast<T*>(context.output) + first, chunk / parts,
               std::min(part_channels_, args_.channels - first), taps);
    });
  }

 private:
  void check_window() const {
    const qt_pool_args& a = args_;
    require(a.kernel_height > 0 && a.kernel_width > 0 && a.stride_height > 0 && a.stride_width > 0, "an empty window");
    require(a.dilation_height > 0 && a.dilation_width > 0, "a dilation is not positive");
    require(a.pad_top >= 0 && a.pad_left >= 0 && a.pad_bottom >= 0 && a.pad_right >= 0, "a padding is negative");
    checked_product({a.kernel_height, a.dilation_height, a.in_height});
    checked_product({a.kernel_width, a.dilation_width, a.in_width});
    for (int vertical = 0; vertical < 2; vertical++) {
      const int outputs = vertical ? a.out_height : a.out_width;
      for (int i = 0; i < outputs; i++) {
        const Span span = span_of(a, i, vertical != 0);
        require(span.first < span.last && span.divisor > 0, "a window lies outside of the picture");
      }
    }
  }

  void check_scales() const {
    require(std::isfinite(args_.x_scale) && args_.x_scale > 0, "the scale is not a positive number");
    require(std::isfinite(args_.out_scale) && args_.out_scale > 0, "the scale is not a positive number");
    require(args_.out_zero >= 0 && args_.out_zero <= 255 && args_.x_zero >= 0 && args_.x_zero <= 255, "a zero point is no byte");
  }

  int64_t most(bool vertical) const {
    if (args_.adaptive == 0) return vertical ? args_.kernel_height : args_.kernel_width;
    int64_t found = 0;
    const int outputs = vertical ? args_.out_height : args_.out_width;
    for (int i = 0; i < outputs; i++) {
      const Span span = span_of(args_, i, vertical);
      found = std::max(found, span.last - span.first);
    }
    return found;
  }

  // The first `channels` of one line of one picture's output.
  void run_line(const T* x, T* y, int64_t line, int64_t channels, const T** taps) const {
    const int64_t pixel = args_.channels;
    const T* picture = x + line / args_.out_height * args_.in_height * args_.in_width * pixel;
    T* out = y + line * args_.out_width * pixel;
    const Span rows = span_of(args_, line % args_.out_height, true);
    for (int ox = 0; ox < args_.out_width; ox++, out += pixel) {
      const Span cols = span_of(args_, ox, false);
      int64_t count = 0;
      for (int64_t iy = rows.first; iy < rows.last; iy += rows.step) {
        for (int64_t ix = cols.first; ix < cols.last; ix += cols.step) {
          taps[count++] = picture + (iy * args_.in_width + ix) * pixel;
        }
      }
      if (args_.kind == QT_POOL_MAX) {
        maximum(taps, count, channels, out);
      } else {
        average(taps, count, channels, divisor(rows, cols, count), out);
      }
    }
  }

  float divisor(const Span& rows, const Span& cols, int64_t count) const {
    if (args_.divisor_override != 0) return static_cast<float>(args_.divisor_override);
    if (args_.adaptive == 0 && args_.count_include_pad != 0) return static_cast<float>(rows.divisor * cols.divisor);
    return static_cast<float>(count);
  }

  void maximum(const T* const* taps, int64_t count, int64_t channels, T* out) const {
    if constexpr (sizeof(T) == 1) {
      row_.kernel->max_u8(taps, count, channels, out);
    } else {
      row_.kernel->max_f32(taps, count, channels, out);
    }
  }

  void average(const T* const* taps, int64_t count, int64_t channels, float divisor, T* out) const {
    if constexpr (sizeof(T) == 1) {
      const float multiplier = args_.x_scale / (args_.out_scale * divisor);
      const int32_t offset = static_cast<int32_t>(count * args_.x_zero);
      row_.kernel->average_u8(taps, count, channels, {multiplier, offset, args_.out_zero, args_.adaptive}, out);
    } else {
      row_.kernel->average_f32(taps, count, channels, divisor, out);
    }
  }

  qt_pool_args args_;
  const Row<const PoolKernels*>& row_;
  int64_t most_taps_, part_channels_;
};

// A chunk is a part of one picture's channels: windows may share pixels, so their order is the same for any threads.
class MaxPoolGrad final : public Op {
 public:
  MaxPoolGrad(const qt_pool_args& args, const Row<const PoolKernels*>& row)
      : args_(args), row_(row), forward_(args, row), taps_(checked_product({args.kernel_height, args.kernel_width})) {
    require(args.kind == QT_POOL_MAX && args.adaptive == 0, "only a pool of largest numbers has this gradient");
  }

  const char* kernel() const override { return row_.name; }
  int64_t scratch_bytes() const override { return 2 * taps_ * static_cast<int64_t>(sizeof(float*)); }

  Extents extents() const override {
    const Extents forward = forward_.extents();
    return {2, {forward.inputs[0], forward.output}, forward.inputs[0]};
  }

  void run(const RunContext& context) const override {
    const int64_t parts = (args_.channels + kChannels - 1) / kChannels;
    context.pool->parallel(int64_t{args_.batch} * parts, [&](int64_t chunk, int thread) {
      run_picture(context, chunk / parts, chunk % parts * kChannels,
                  reinterpret_cast<const float**>(context.scratch + thread * context.scratch_stride));
    });
  }

 private:
  void run_picture(const RunContext& context, int64_t image, int64_t channel, const float** taps) const {
    const int64_t pixels = int64_t{args_.in_height} * args_.in_width, outputs = int64_t{args_.out_height} * args_.out_width;
    const int64_t channels = std::min(kChannels, args_.channels - channel), at = image * pixels * args_.channels + channel;
    const float* x = static_cast<const float*>(context.inputs[0]) + at;
    const float* dy = static_cast<const float*>(context.inputs[1]) + image * outputs * args_.channels + channel;
    float* dx = static_cast<float*>(context.output) + at;
    for (int64_t i = 0; i < pixels; i++) std::memset(dx + i * args_.channels, 0, channels * 4);
    for (int64_t i = 0; i < outputs; i++) {
      add_window(i, x, dx, taps, channels, dy + i * args_.channels);
    }
  }

  void add_window(int64_t output, const float* x, float* dx, const float** taps, int64_t channels, const float* dy) const {
    float** targets = const_cast<float**>(taps + taps_);
    const Span rows = span_of(args_, output / args_.out_width, true), cols = span_of(args_, output % args_.out_width, false);
    int64_t count = 0;
    for (int64_t iy = rows.first; iy < rows.last; iy += rows.step) {
      for (int64_t ix = cols.first; ix < cols.last; ix += cols.step, count++) {
        const int64_t at = (iy * args_.in_width + ix) * args_.channels;
        taps[count] = x + at;
        targets[count] = dx + at;
      }
    }
    row_.kernel->add_max_grad(taps, targets, count, channels, dy);
  }

  qt_pool_args args_;
  const Row<const PoolKernels*>& row_;
  PoolOp<float> forward_;  // checks the description
  int64_t taps_;
};

}  // namespace

std::unique_ptr<Op> make_pool(const qt_op& op, const MakeContext& context) {
  const qt_pool_args& args = *static_cast<const qt_pool_args*>(op.args);
  const Row<const PoolKernels*>& row = select_row(kRows, context);
  if (op.kind == QT_OP_TMAX_POOL_GRAD) return std::make_unique<MaxPoolGrad>(args, row);
  if (op.kind == QT_OP_QPOOL) return std::make_unique<PoolOp<uint8_t>>(args, row);
  return std::make_unique<PoolOp<float>>(args, row);
}

void list_pool(std::vector<KernelInfo>* list) { list_rows("pool", kRows, list); }

}  // namespace qtool
