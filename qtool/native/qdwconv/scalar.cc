// The specification of the kernels.
#include <cmath>

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

uint8_t finish(const QconvFinish& f, const QdwconvBlock& block, int channel, int32_t total, const uint8_t* residual) {
  float r = (static_cast<float>(total) + block.bias[channel]) * block.multiplier[channel];
  if (residual != nullptr) r += (static_cast<float>(*residual) - f.res_zero) * f.res_multiplier;
  const float clamped = r > f.low ? (r < f.high ? r : f.high) : f.low;
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(clamped)) + f.out_zero);
}

void run(const QdwconvLine& line) {
  const QdwconvShape& shape = *line.shape;
  for (int64_t x = 0; x < shape.out_width; x++) {
    qdwconv_point(line, x, kGroup);
    for (int b = 0; b < shape.block_count; b++) {
      const QdwconvBlock& block = shape.blocks[b];
      for (int channel = 0; channel < block.channels; channel++) {
        const int64_t at = x * shape.channels + block.first + channel;
        const uint8_t* residual = line.residual != nullptr ? line.residual + at : nullptr;
        line.out[at] = finish(shape.finish, block, channel, sum(line, block, channel), residual);
      }
    }
  }
}

}  // namespace

const QdwconvKernel qdwconv_scalar = {kGroup, 1, 1, 1, 1, false, run};

}  // namespace qtool
