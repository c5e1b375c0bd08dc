// The specification of the kernels.
#include "qconv/finish.h"
#include "qdwconv/qdwconv.h"

namespace qtool {
namespace {

constexpr int kGroup = 4, kChannels = 4;

int32_t sum(const QdwconvLine& line, const QdwconvBlock& block, int channel) {
  const int8_t* weight = static_cast<const int8_t*>(block.weight) + channel * kGroup;
  uint32_t total = static_cast<uint32_t>(block.start[channel]);
  for (int g = 0; g < line.shape->groups; g++) {
    for (int slot = 0; slot < kGroup; slot++) {
      const uint8_t a = line.pointers[g * kGroup + slot][block.first + channel];
      total += static_cast<uint32_t>(a * weight[g * kGroup * kChannels + slot]);
    }
  }
  return static_cast<int32_t>(total);
}

void run(const QdwconvLine& line) {
  const QdwconvShape& shape = *line.shape;
  for (int64_t x = 0; x < shape.out_width; x++) {
    qdwconv_point(line, x, kGroup);
    for (int b = 0; b < shape.block_count; b++) {
      const QdwconvBlock& block = shape.blocks[b];
      for (int channel = 0; channel < block.channels; channel++) {
        const int64_t at = x * shape.pitch + block.first + channel;
        const uint8_t* residual = line.residual != nullptr ? line.residual + at : nullptr;
        const int32_t total = sum(line, block, channel);
        line.out[at] = finish_sum(shape.finish, total, block.bias[channel], block.multiplier[channel], residual);
      }
    }
  }
}

}  // namespace

const QdwconvKernel qdwconv_scalar = {kGroup, 1, 1, 1, 1, false, run};

}  // namespace qtool
