#include "layout/permute.h"

#include <cstring>
#include <utility>
#include <vector>

#include "core/op.h"

namespace qtool {
namespace {

constexpr int64_t kChunk = 64 * 1024;  // bytes

template <class T>
void transpose_any(const uint8_t* x, int64_t x_stride, uint8_t* y, int64_t y_stride, int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c++) {
    for (int64_t r = 0; r < rows; r++) {
      std::memcpy(y + c * y_stride + r * sizeof(T), x + r * x_stride + c * sizeof(T), sizeof(T));
    }
  }
}

// The axes of the source's shape and their order with axes of size 1 dropped and neighbours merged.
struct Reduced {
  std::vector<int64_t> shape;
  std::vector<int> order;
};

Reduced reduce(const qt_permute_args& args) {
  std::vector<int> kept;  // the source's axes in the target's order
  for (int i = 0; i < args.rank; i++) {
    if (args.shape[args.order[i]] != 1) kept.push_back(args.order[i]);
  }
  std::vector<int64_t> sizes(args.shape, args.shape + args.rank);
  std::vector<int> order;
  for (int axis : kept) {
    int before = order.empty() ? -1 : order.back() + 1;
    while (before >= 0 && before < axis && args.shape[before] == 1) before++;
    if (before == axis) {  // follows its neighbour in both: the two are one axis, called by the last of them
      sizes[axis] *= sizes[order.back()];
      order.back() = axis;
    } else {
      order.push_back(axis);
    }
  }
  Reduced reduced;
  std::vector<int> number(args.rank, -1);
  for (int axis = 0; axis < args.rank; axis++) {
    bool used = false;
    for (int other : order) used = used || other == axis;
    if (!used) continue;
    number[axis] = static_cast<int>(reduced.shape.size());
    reduced.shape.push_back(sizes[axis]);
  }
  for (int axis : order) reduced.order.push_back(number[axis]);
  return reduced;
}

void check(const qt_permute_args& args) {
  require(args.rank >= 0 && args.rank <= 6, "the rank is not in 0..6");
  const int bytes = args.element_bytes;
  require(bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8, "elements do not have 1, 2, 4 or 8 bytes");
  bool seen[6] = {};
  for (int i = 0; i < args.rank; i++) {
    require(args.order[i] >= 0 && args.order[i] < args.rank && !seen[args.order[i]], "the order is no permutation");
    seen[args.order[i]] = true;
    require(args.shape[i] >= 0, "a size is negative");
  }
}

}  // namespace

Permutation::Permutation(const qt_permute_args& args) : element_(args.element_bytes) {
  check(args);
  bytes_ = element_;
  for (int i = 0; i < args.rank; i++) bytes_ = checked_product({bytes_, args.shape[i]});
  if (bytes_ == 0) return;
  const Reduced reduced = reduce(args);
  const int rank = static_cast<int>(reduced.shape.size());
  std::vector<Axis> axes(rank);  // of the source
  int64_t stride = element_;
  for (int i = rank - 1; i >= 0; i--) {
    axes[i] = {reduced.shape[i], stride, 0};
    stride *= reduced.shape[i];
  }
  stride = element_;
  for (int i = rank - 1; i >= 0; i--) {
    axes[reduced.order[i]].y_stride = stride;
    stride *= reduced.shape[reduced.order[i]];
  }
  const int last = rank - 1;
  copies_ = rank == 0 || reduced.order[last] == last;
  cols_ = rank == 0 ? Axis{1, element_, element_} : axes[last];
  rows_ = copies_ ? Axis{1, 0, 0} : axes[reduced.order[last]];
  for (int i : reduced.order) {
    if (i == last || (!copies_ && i == reduced.order[last])) continue;
    axes_[axis_count_++] = axes[i];
    outer_ *= axes[i].size;
  }
  strip_ = kChunk / element_ / (rows_.size > 0 ? rows_.size : 1) / 64 * 64;
  strip_ = strip_ > 0 ? strip_ : 64;
  strips_ = (cols_.size + strip_ - 1) / strip_;
  const int64_t each = element_ * rows_.size * cols_.size;
  batch_ = strips_ == 1 && each > 0 && each < kChunk ? kChunk / each : 1;
  chunks_ = (outer_ + batch_ - 1) / batch_ * strips_;
}

void Permutation::run(const LayoutKernels& kernels, const uint8_t* x, uint8_t* y, int64_t chunk) const {
  const int64_t first = chunk % strips_ * strip_;
  const int64_t last = first + strip_ < cols_.size ? first + strip_ : cols_.size;
  const int64_t begin = chunk / strips_ * batch_;
  for (int64_t outer = begin; outer < begin + batch_ && outer < outer_; outer++) {
    step(kernels, x, y, {outer, first, last});
  }
}

void Permutation::step(const LayoutKernels& kernels, const uint8_t* x, uint8_t* y, const Part& part) const {
  int64_t index = part.outer;
  for (int i = axis_count_ - 1; i >= 0; i--) {
    x += index % axes_[i].size * axes_[i].x_stride;
    y += index % axes_[i].size * axes_[i].y_stride;
    index /= axes_[i].size;
  }
  const int64_t rows = rows_.size, cols = part.last - part.first, x_stride = rows_.x_stride, y_stride = cols_.y_stride;
  x += part.first * element_;
  y += part.first * y_stride;
  if (copies_) {
    std::memcpy(y, x, static_cast<size_t>(cols * element_));
    return;
  }
  switch (element_) {
    case 1: return kernels.transpose8(x, x_stride, y, y_stride, rows, cols);
    case 2: return transpose_any<uint16_t>(x, x_stride, y, y_stride, rows, cols);
    case 4:
      return kernels.transpose32(reinterpret_cast<const uint32_t*>(x), x_stride / 4, reinterpret_cast<uint32_t*>(y),
                                 y_stride / 4, rows, cols);
    default: return transpose_any<uint64_t>(x, x_stride, y, y_stride, rows, cols);
  }
}

}  // namespace qtool
