// Memory of a plan: zeroed, aligned, in huge pages where it is large.
#pragma once

#include <cstdint>
#include <vector>

namespace qtool {

// One block straight from the operating system, with QT_SLACK readable bytes after its end.
class Block {
 public:
  explicit Block(int64_t bytes);  // std::bad_alloc where there is not as much
  ~Block();
  Block(Block&& other) noexcept;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* mapped_;
  int64_t mapped_bytes_;
  uint8_t* data_;
  int64_t bytes_;
};

// Packed weights of the operators that one thread makes, one after another in the order in which they run: fewer pages,
// and the prefetcher finds the next layer where this one ends.
class Memory {
 public:
  uint8_t* allocate(int64_t bytes);  // zeroed, 64-byte aligned, QT_SLACK readable bytes after; lives as long as the plan
  int64_t bytes() const;

 private:
  std::vector<Block> blocks_;
  int64_t used_ = 0;  // of the last block
};

}  // namespace qtool
