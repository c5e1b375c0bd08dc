#include "qtileconv/pack.h"

#include <algorithm>

#include "qconv/pack.h"

namespace qtool {
namespace {

constexpr int64_t kTileBytes = 1024, kTileColumns = 16, kStep = 64;

// Channel c of a panel of `vectors` tiles; the rest stays zero.
void pack_channel(const int8_t* weight, int64_t depth, int64_t vectors, int64_t c, int8_t* packed) {
  packed += c / kTileColumns * kTileBytes + c % kTileColumns * 4;
  for (int64_t k = 0; k < depth; k++) {
    packed[k / kStep * vectors * kTileBytes + k % kStep / 4 * 64 + k % 4] = weight[k];
  }
}

}  // namespace

std::vector<QtileconvPanel> pack_qtileconv(const qt_conv_args& args, int row_tiles, Memory* memory) {
  const int64_t inputs = args.in_channels / args.groups, outputs = args.out_channels / args.groups;
  const int64_t taps = int64_t{args.kernel_height} * args.kernel_width, depth = taps * inputs;
  const int64_t vectors = 4 / row_tiles, width = vectors * kTileColumns;
  const int64_t panels = (outputs + width - 1) / width * args.groups, steps = (depth + kStep - 1) / kStep;
  const int64_t panel_bytes = checked_product({steps, vectors, kTileBytes});
  // One block, so that a panel begins where the one before it ends.
  int8_t* weight = reinterpret_cast<int8_t*>(memory->allocate(checked_product({panels, panel_bytes})));
  int32_t* start = reinterpret_cast<int32_t*>(memory->allocate(checked_product({panels, width, 4})));
  float* bias = reinterpret_cast<float*>(memory->allocate(panels * width * 4));
  float* multiplier = reinterpret_cast<float*>(memory->allocate(panels * width * 4));
  std::vector<QtileconvPanel> result;
  for (int64_t first = 0; first < args.out_channels; first += outputs) {
    for (int64_t at = 0; at < outputs; at += width) {
      const int columns = static_cast<int>(std::min(width, outputs - at));
      result.push_back({columns, first / outputs * inputs, first + at, weight, start, bias, multiplier});
      for (int c = 0; c < columns; c++) {
        const int64_t output = first + at + c;
        pack_channel(static_cast<const int8_t*>(args.weight) + output * depth, depth, vectors, c, weight);
        int64_t sum = 0;
        for (const int64_t tap : qconv_tap_sums(args, {taps, inputs, inputs}, output)) sum += tap;
        start[c] = qconv_start(args, output, sum);
        if (args.bias_f32 != nullptr) bias[c] = args.bias_f32[output];
        multiplier[c] = args.multiplier[output];
      }
      weight += panel_bytes;
      start += width;
      bias += width;
      multiplier += width;
    }
  }
  return result;
}

}  // namespace qtool
