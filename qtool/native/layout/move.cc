#include "layout/move.h"

#include <algorithm>
#include <cstring>

#include "core/op.h"

namespace qtool {
namespace {

constexpr int64_t kChunk = 32 * 1024;  // bytes a chunk, about

void fill_with(uint8_t* y, int64_t bytes, const uint8_t* element, int64_t size) {
  if (size == 1) {
    std::memset(y, element[0], static_cast<size_t>(bytes));
  } else {
    for (int64_t i = 0; i < bytes; i += size) std::memcpy(y + i, element, static_cast<size_t>(size));
  }
}

}  // namespace

Moves::Moves(const qt_move_args& args) : outer_(args.outer), element_(args.element_bytes) {
  require(element_ == 1 || element_ == 2 || element_ == 4 || element_ == 8, "elements must have 1, 2, 4 or 8 bytes");
  require(args.row_bytes % element_ == 0, "a row must be a whole number of elements");
  require(args.count >= 0 && args.count <= INT32_MAX, "the number of rows to move is out of range");
  checked_product({args.outer, args.in_rows, args.row_bytes});
  checked_product({args.outer, args.out_rows, args.row_bytes});
  input_ = args.in_rows * args.row_bytes;
  output_ = args.out_rows * args.row_bytes;
  std::memcpy(fill_, args.fill, sizeof(fill_));
  std::vector<bool> written(static_cast<size_t>(args.target != nullptr ? args.out_rows : 0));
  for (int64_t i = 0; i < args.count; i++) {
    const int64_t from = args.source != nullptr ? args.source[i] : i, to = args.target != nullptr ? args.target[i] : i;
    require(from >= -1 && from < args.in_rows, "a row of the input is not there");
    require(to >= 0 && to < args.out_rows, "a row of the output is not there");
    if (args.target != nullptr) {
      require(!written[static_cast<size_t>(to)], "a row of the output is written twice");
      written[static_cast<size_t>(to)] = true;
    }
    const int64_t x = from < 0 ? -1 : from * args.row_bytes, y = to * args.row_bytes;
    Run* last = runs_.empty() ? nullptr : &runs_.back();
    const bool follows = last != nullptr && last->to + last->bytes == y && last->bytes < kChunk &&
                         (from < 0 ? last->from < 0 : last->from >= 0 && last->from + last->bytes == x);
    if (follows) {
      last->bytes += args.row_bytes;
    } else {
      runs_.push_back({x, y, args.row_bytes});
    }
  }
  const int64_t count = static_cast<int64_t>(runs_.size());
  const int64_t mean = count == 0 ? 1 : std::max<int64_t>(1, args.count * args.row_bytes / count);
  per_chunk_ = std::max<int64_t>(1, kChunk / mean);
  chunks_ = (count + per_chunk_ - 1) / per_chunk_;
}

void Moves::run(const uint8_t* x, uint8_t* y, int64_t chunk) const {
  const int64_t first = chunk % chunks_ * per_chunk_, outer = chunk / chunks_;
  const int64_t last = std::min(first + per_chunk_, static_cast<int64_t>(runs_.size()));
  x += outer * input_;
  y += outer * output_;
  for (int64_t i = first; i < last; i++) {
    const Run& r = runs_[static_cast<size_t>(i)];
    if (r.from < 0) {
      fill_with(y + r.to, r.bytes, fill_, element_);
    } else {
      std::memcpy(y + r.to, x + r.from, static_cast<size_t>(r.bytes));
    }
  }
}

}  // namespace qtool
