#include "qdwconv/pack.h"

#include <algorithm>
#include <cstring>

#include "qconv/pack.h"
#include "qconv/shape.h"

namespace qtool {
namespace {

std::vector<QdwconvSlot> number_taps(const qt_conv_args& args, int group, bool by_columns) {
  if (by_columns && group == 2) {
    return {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {0, 2}, {1, 2}, {2, 0}, {2, 1}, {-1, -1}, {2, 2}};
  }
  std::vector<QdwconvSlot> slots;
  if (by_columns) {
    for (int kx = 0; kx < args.kernel_width; kx++) {
      for (int ky = 0; ky < group; ky++) {
        slots.push_back(ky < args.kernel_height ? QdwconvSlot{ky, kx} : QdwconvSlot{-1, -1});
      }
    }
    return slots;
  }
  for (int ky = 0; ky < args.kernel_height; ky++) {
    for (int kx = 0; kx < args.kernel_width; kx++) slots.push_back({ky, kx});
  }
  while (slots.size() % group != 0) slots.push_back({-1, -1});
  return slots;
}

// The channel of its block that lies at a position; see qdwconv.h.
int channel_at(int position, int lanes, int vectors) {
  const int v = position / (lanes * 4), l = position / 4 % lanes, i = position % 4;
  return (l * vectors + v) * 4 + i;
}

template <class Element>
void pack_weight(const qt_conv_args& args, const QdwconvPacked& packed, const QdwconvKernel& kernel,
                 const QdwconvBlock& block, Element* target) {
  const int width = block.lanes * kernel.vectors * 4;
  const int64_t taps = int64_t{args.kernel_height} * args.kernel_width;
  for (size_t s = 0; s < packed.slots.size(); s++) {
    const QdwconvSlot slot = packed.slots[s];
    for (int position = 0; position < width && slot.ky >= 0; position++) {
      const int channel = channel_at(position, block.lanes, kernel.vectors);
      if (channel >= block.channels) continue;
      const int64_t tap = int64_t{slot.ky} * args.kernel_width + slot.kx;
      target[(s / kernel.group * width + position) * kernel.group + s % kernel.group] =
          static_cast<const int8_t*>(args.weight)[(block.first + channel) * taps + tap];
    }
  }
}

QdwconvBlock pack_block(const qt_conv_args& args, const QdwconvPacked& packed, const QdwconvKernel& kernel,
                        int64_t first, Memory* memory) {
  const int64_t left = args.out_channels - first;
  int lanes = kernel.least_lanes;
  while (lanes < kernel.most_lanes && lanes * kernel.vectors * 4 < left) lanes *= 2;
  const int width = lanes * kernel.vectors * 4, channels = static_cast<int>(std::min<int64_t>(left, width));
  const int64_t slots = packed.slots.size(), taps = int64_t{args.kernel_height} * args.kernel_width;
  const QconvDepth all_taps = {1, taps, taps};  // as one
  uint8_t* weight = memory->allocate(checked_product({slots, width, kernel.element_bytes}));
  int32_t* start = reinterpret_cast<int32_t*>(memory->allocate(width * 4));
  float* bias = reinterpret_cast<float*>(memory->allocate(width * 4));
  float* multiplier = reinterpret_cast<float*>(memory->allocate(width * 4));
  for (int position = 0; position < width; position++) {
    const int channel = channel_at(position, lanes, kernel.vectors);
    if (channel >= channels) continue;
    start[position] = qconv_start(args, first + channel, qconv_tap_sums(args, all_taps, first + channel)[0]);
    if (args.bias_f32 != nullptr) bias[position] = args.bias_f32[first + channel];
    multiplier[position] = args.multiplier[first + channel];
  }
  const QdwconvBlock block = {lanes, channels, first, weight, start, bias, multiplier};
  if (kernel.element_bytes == 1) {
    pack_weight(args, packed, kernel, block, reinterpret_cast<int8_t*>(weight));
  } else {
    pack_weight(args, packed, kernel, block, reinterpret_cast<int16_t*>(weight));
  }
  return block;
}

}  // namespace

QdwconvPacked pack_qdwconv(const qt_conv_args& args, const QdwconvKernel& kernel, Memory* memory) {
  QdwconvPacked packed;
  const bool by_columns =
      kernel.columns && args.kernel_height == 3 && args.kernel_width == 3 && args.dilation_width == 1;
  packed.slots = number_taps(args, kernel.group, by_columns);
  for (int64_t first = 0; first < args.out_channels; first += packed.blocks.back().channels) {
    packed.blocks.push_back(pack_block(args, packed, kernel, first, memory));
  }
  const int64_t row_bytes = checked_product({args.in_width, args.in_channels});
  uint8_t* outside = memory->allocate(row_bytes);
  std::memset(outside, args.x_zero, row_bytes);
  QdwconvShape& shape = packed.shape;
  shape.channels = args.in_channels;
  shape.pitch = qconv_pitch(args);
  shape.in_width = args.in_width;
  shape.out_width = args.out_width;
  shape.stride = args.stride_width;
  shape.pad = args.pad_left;
  shape.dilation = args.dilation_width;
  shape.groups = static_cast<int>(packed.slots.size() / kernel.group);
  shape.by_columns = by_columns;
  shape.slots = packed.slots.data();
  shape.blocks = packed.blocks.data();
  shape.block_count = static_cast<int>(packed.blocks.size());
  shape.outside = outside;
  shape.finish = qconv_finish(args);
  return packed;
}

}  // namespace qtool
