#include "core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "core/op.h"

namespace qtool {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kMemoryBlock = int64_t{8} << 20;

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

Block::Block(int64_t bytes) : bytes_(bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 4096;
  mapped_bytes_ = round_up(bytes + QT_SLACK, alignment) + (alignment > 4096 ? alignment : 0);
  mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) throw std::bad_alloc();
  data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<int64_t>(mapped_), alignment));
  if (alignment == kHugePage) madvise(data_, round_up(bytes + QT_SLACK, alignment), MADV_HUGEPAGE);  // a wish: may fail
}

Block::~Block() {
  if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
}

Block::Block(Block&& other) noexcept
    : mapped_(other.mapped_), mapped_bytes_(other.mapped_bytes_), data_(other.data_), bytes_(other.bytes_) {
  other.mapped_ = nullptr;
}

uint8_t* Memory::allocate(int64_t bytes) {
  if (blocks_.empty() || bytes > blocks_.back().bytes() - used_) {
    // The first block fits small models; later ones are large.
    blocks_.emplace_back(std::max(bytes, blocks_.empty() ? kMemoryBlock / 8 : kMemoryBlock));
    used_ = 0;
  }
  uint8_t* found = blocks_.back().data() + used_;
  used_ += round_up(bytes, 64);
  return found;
}

int64_t Memory::bytes() const {
  int64_t sum = 0;
  for (const Block& block : blocks_) sum += block.bytes();
  return sum;
}

}  // namespace qtool
