// The operators of the family: pieces, the sums over them, and the factors of each channel.
#include "tnorm/tnorm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rows.h"

namespace qtool {
namespace {

constexpr Row<const TnormKernels*> kRows[] = {
#define QT_KERNEL(isa, name, tile) {isa, #name, tile, &name},
#include "tnorm/kernels.inc"
#undef QT_KERNEL
};

constexpr int64_t kPieceFloats = 16 * 1024, kLeastPeriod = 256;

// What all operators of the family share: the pieces of a matrix, and memory for numbers of a channel.
class Matrix : public Op {
 public:
  Matrix(const qt_tnorm_args& args, const Row<const TnormKernels*>& row)
      : channels_(args.channels), eps_(args.eps), row_(row) {
    require(args.rows >= 0 && args.channels >= 1, "the number of rows must be 0 or more, of channels 1 or more");
    count_ = checked_product({args.rows, channels_});
    rows_ = args.rows;
    period_ = (kLeastPeriod + channels_ - 1) / channels_ * channels_;
    piece_ = std::max<int64_t>(1, kPieceFloats / channels_) * channels_;
    pieces_ = (count_ + piece_ - 1) / piece_;
  }

  const char* kernel() const override { return row_.name; }

 protected:
  const TnormKernels& kernels() const { return *row_.kernel; }

  // Calls f(first element, count, piece, thread) for every piece, on all threads.
  template <class F>
  void each_piece(ThreadPool* pool, const F& f) const {
    pool->parallel(pieces_, [&](int64_t piece, int thread) {
      f(piece * piece_, std::min(piece_, count_ - piece * piece_), piece, thread);
    });
  }

  void repeat(const float* channels, float* period) const {
    for (int64_t at = 0; at < period_; at += channels_) std::memcpy(period + at, channels, channels_ * 4);
  }

  // Sums of a period to sums of channels.
  void fold(const float* period, float* channels) const {
    std::memcpy(channels, period, channels_ * 4);
    for (int64_t at = channels_; at < period_; at += channels_) {
      for (int64_t c = 0; c < channels_; c++) channels[c] += period[at + c];
    }
  }

  // Of the plan's memory, not yet touched: the buffers may turn out to be smaller than the description says.
  static float* floats(Memory* memory, int64_t count, int64_t size) {
    return reinterpret_cast<float*>(memory->allocate(checked_product({count, size, 4})));
  }

  int64_t bytes() const { return count_ * 4; }
  int64_t channel_bytes() const { return channels_ * 4; }

  int64_t rows_, channels_, count_;
  float eps_;
  int64_t period_, piece_, pieces_;

 private:
  Row<const TnormKernels*> row_;
};

class Sums final : public Matrix {
 public:
  Sums(const qt_tnorm_args& args, const Row<const TnormKernels*>& row, Memory* memory)
      : Matrix(args, row), partial_(floats(memory, pieces_, channels_)) {}

  Extents extents() const override { return {1, {bytes()}, channel_bytes()}; }
  int64_t scratch_bytes() const override { return period_ * 4; }

  void run(const RunContext& context) const override {
    const float* x = static_cast<const float*>(context.inputs[0]);
    float* y = static_cast<float*>(context.output);
    each_piece(context.pool, [&](int64_t first, int64_t count, int64_t piece, int thread) {
      float* sum = reinterpret_cast<float*>(context.scratch + thread * context.scratch_stride);
      std::memset(sum, 0, period_ * 4);
      kernels().add(x + first, count, period_, sum);
      fold(sum, &partial_[piece * channels_]);
    });
    for (int64_t c = 0; c < channels_; c++) {
      double sum = 0;
      for (int64_t piece = 0; piece < pieces_; piece++) sum += partial_[piece * channels_ + c];
      y[c] = static_cast<float>(sum);
    }
  }

 private:
  float* partial_;  // [pieces][channels]; a plan runs once at a time
};

class Affine final : public Matrix {
 public:
  Affine(const qt_tnorm_args& args, const Row<const TnormKernels*>& row, Memory* memory)
      : Matrix(args, row), factors_(floats(memory, 2, period_)) {}

  Extents extents() const override { return {2, {bytes(), 2 * channel_bytes()}, bytes()}; }

  void run(const RunContext& context) const override {
    const float* x = static_cast<const float*>(context.inputs[0]);
    const float* given = static_cast<const float*>(context.inputs[1]);
    float* y = static_cast<float*>(context.output);
    for (int i = 0; i < 2; i++) repeat(given + i * channels_, &factors_[i * period_]);
    each_piece(context.pool, [&](int64_t first, int64_t count, int64_t, int) {
      kernels().affine(x + first, y + first, count, period_, &factors_[0], &factors_[period_]);
    });
  }

 private:
  float* factors_;  // [2][period]
};

class Norm final : public Matrix {
 public:
  Norm(const qt_tnorm_args& args, const Row<const TnormKernels*>& row, Memory* memory)
      : Matrix(args, row), partial_(floats(memory, 2 * pieces_, channels_)), factors_(floats(memory, 2, period_)) {
    require(args.rows >= 1, "a batch norm of no rows");
    require(std::isfinite(eps_) && eps_ >= 0, "eps must be a number of 0 or more");
  }

  Extents extents() const override { return {2, {bytes(), 2 * channel_bytes()}, bytes() + 3 * channel_bytes()}; }
  int64_t scratch_bytes() const override { return 2 * period_ * 4; }

  void run(const RunContext& context) const override {
    const float* x = static_cast<const float*>(context.inputs[0]);
    float* y = static_cast<float*>(context.output);
    each_piece(context.pool, [&](int64_t first, int64_t count, int64_t piece, int thread) {
      float* sum = reinterpret_cast<float*>(context.scratch + thread * context.scratch_stride);
      measure(x + first, count, sum, &partial_[2 * piece * channels_]);
    });
    put_together(static_cast<const float*>(context.inputs[1]), y + count_);
    each_piece(context.pool, [&](int64_t first, int64_t count, int64_t, int) {
      kernels().affine(x + first, y + first, count, period_, &factors_[0], &factors_[period_]);
    });
  }

 private:
  // The means of a piece, and the sums of squares around them.
  void measure(const float* x, int64_t count, float* sum, float* found) const {
    float *mean = sum + period_, *squares = found + channels_;
    std::memset(sum, 0, period_ * 4);
    kernels().add(x, count, period_, sum);
    fold(sum, found);
    const float rows = static_cast<float>(count / channels_);
    for (int64_t c = 0; c < channels_; c++) found[c] /= rows;
    repeat(found, mean);
    std::memset(sum, 0, period_ * 4);
    kernels().add_squares(x, count, period_, mean, sum);
    fold(sum, squares);
  }

  // Mean, variance and 1 / standard deviation of all rows to `found` [3][channels], and what they do to x.
  void put_together(const float* weight_bias, float* found) const {
    for (int64_t c = 0; c < channels_; c++) {
      double mean = 0, squares = 0, rows = 0;
      for (int64_t piece = 0; piece < pieces_; piece++) {
        const double more = static_cast<double>(std::min(piece_, count_ - piece * piece_) / channels_);
        const float* part = &partial_[2 * piece * channels_ + c];
        const double apart = part[0] - mean, all = rows + more;
        mean += apart * more / all;
        squares += part[channels_] + apart * apart * rows * more / all;
        rows = all;
      }
      const double variance = squares / rows, inv_std = 1 / std::sqrt(variance + eps_);
      found[c] = static_cast<float>(mean);
      found[channels_ + c] = static_cast<float>(variance);
      found[2 * channels_ + c] = static_cast<float>(inv_std);
      const double scale = weight_bias[c] * inv_std;
      factors_[c] = static_cast<float>(scale);
      factors_[period_ + c] = static_cast<float>(weight_bias[channels_ + c] - mean * scale);
    }
    for (int i = 0; i < 2; i++) {
      float* factors = &factors_[i * period_];
      for (int64_t at = channels_; at < period_; at += channels_) std::memcpy(factors + at, factors, channels_ * 4);
    }
  }

  float* partial_;  // [pieces][2][channels]
  float* factors_;  // [2][period]: scale, shift
};

class NormGrad final : public Matrix {
 public:
  NormGrad(const qt_tnorm_args& args, const Row<const TnormKernels*>& row, Memory* memory)
      : Matrix(args, row), partial_(floats(memory, 2 * pieces_, channels_)), factors_(floats(memory, 4, period_)), numbers_(floats(memory, 3, channels_)) {
    require(args.rows >= 1, "a batch norm of no rows");
  }

  Extents extents() const override {
    return {3, {bytes(), bytes(), 3 * channel_bytes()}, bytes() + 2 * channel_bytes()};
  }
  int64_t scratch_bytes() const override { return 2 * period_ * 4; }

  void run(const RunContext& context) const override {
    const float *x = static_cast<const float*>(context.inputs[0]), *dy = static_cast<const float*>(context.inputs[1]);
    const float* mean_inv_weight = static_cast<const float*>(context.inputs[2]);
    float* dx = static_cast<float*>(context.output);
    repeat(mean_inv_weight, &factors_[0]);
    each_piece(context.pool, [&](int64_t first, int64_t count, int64_t piece, int thread) {
      float* sum = reinterpret_cast<float*>(context.scratch + thread * context.scratch_stride);
      std::memset(sum, 0, 2 * period_ * 4);
      kernels().add_grads(x + first, dy + first, count, period_, &factors_[0], sum, sum + period_);
      fold(sum, &partial_[2 * piece * channels_]);
      fold(sum + period_, &partial_[(2 * piece + 1) * channels_]);
    });
    put_together(mean_inv_weight, dx + count_);
    const float* const factors[] = {&factors_[0], &factors_[period_], &factors_[2 * period_], &factors_[3 * period_]};
    each_piece(context.pool, [&](int64_t first, int64_t count, int64_t, int) {
      kernels().grad(x + first, dy + first, dx + first, count, period_, factors);
    });
  }

 private:
  // dweight and dbias to `found` [2][channels], and what they do to x and dy.
  void put_together(const float* mean_inv_weight, float* found) const {
    for (int64_t c = 0; c < channels_; c++) {
      double by_bias = 0, by_weight = 0;
      for (int64_t piece = 0; piece < pieces_; piece++) {
        by_bias += partial_[2 * piece * channels_ + c];
        by_weight += partial_[(2 * piece + 1) * channels_ + c];
      }
      const double inv_std = mean_inv_weight[channels_ + c], factor = mean_inv_weight[2 * channels_ + c] * inv_std;
      by_weight *= inv_std;
      found[c] = static_cast<float>(by_weight);
      found[channels_ + c] = static_cast<float>(by_bias);
      numbers_[c] = static_cast<float>(factor);
      numbers_[channels_ + c] = static_cast<float>(-factor * inv_std * by_weight / rows_);
      numbers_[2 * channels_ + c] = static_cast<float>(-factor * by_bias / rows_);
    }
    for (int i = 0; i < 3; i++) repeat(&numbers_[i * channels_], &factors_[(i + 1) * period_]);
  }

  float* partial_;  // [pieces][2][channels]
  float* factors_;  // [4][period]: mean, factor, slope, shift
  float* numbers_;  // [3][channels]: the last three
};

}  // namespace

std::unique_ptr<Op> make_tnorm(const qt_op& op, const MakeContext& context) {
  const qt_tnorm_args& args = *static_cast<const qt_tnorm_args*>(op.args);
  const Row<const TnormKernels*>& row = select_row(kRows, context);
  switch (op.kind) {
    case QT_OP_TNORM: return std::make_unique<Norm>(args, row, context.memory);
    case QT_OP_TNORM_GRAD: return std::make_unique<NormGrad>(args, row, context.memory);
    case QT_OP_TSUMS: return std::make_unique<Sums>(args, row, context.memory);
    case QT_OP_TAFFINE: return std::make_unique<Affine>(args, row, context.memory);
    default: throw InvalidPlan("this is no operator over rows");
  }
}

void list_tnorm(std::vector<KernelInfo>* list) { list_rows("tnorm", kRows, list); }

}  // namespace qtool
