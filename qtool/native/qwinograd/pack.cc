#include "qwinograd/pack.h"

#include <algorithm>
#include <cstring>

namespace qtool {
namespace {

// `columns` of the panel's `width`.
void pack_panel(const int8_t* weight, int64_t channels, int columns, int width, int8_t* packed) {
  const int half = width / 2;
  for (int64_t i = 0; i < channels; i += 2) {
    const bool both = i + 1 < channels;
    for (int tap = 0; tap < 9; tap++, packed += 2 * width) {
      const int8_t* from = weight + tap * channels + i;
      for (int c = 0; c < columns; c++, from += 9 * channels) {
        int8_t* to = packed + c % half * 4 + c / half;
        to[0] = from[0];
        if (both) to[2] = from[1];
      }
    }
  }
}

// The largest magnitude of a sum of output channel `output`.
int64_t most_sum(const qt_conv_args& args, int64_t output) {
  const int64_t depth = 9 * int64_t{args.in_channels};
  const int8_t* weight = static_cast<const int8_t*>(args.weight) + output * depth;
  int64_t positive = 0, negative = 0;
  for (int64_t i = 0; i < depth;) {  // in 32 bits as far as they hold: the compiler makes vectors of it
    const int64_t end = std::min(depth, i + (int64_t{1} << 20));
    int32_t sum = 0, magnitudes = 0;
    for (; i < end; i++) {
      sum += weight[i];
      magnitudes += weight[i] < 0 ? -weight[i] : weight[i];
    }
    positive += (magnitudes + sum) / 2;
    negative += (magnitudes - sum) / 2;
  }
  const int64_t above = 255 - args.x_zero, below = args.x_zero;
  return std::max(positive * above + negative * below, negative * above + positive * below);
}

}  // namespace

bool qwinograd_is_exact(const qt_conv_args& a, int shift) {
  for (int64_t o = 0; o < a.out_channels; o++) {
    if (most_sum(a, o) >= int64_t{1} << (31 - shift)) return false;
  }
  return true;
}

std::vector<QwinogradPanel> pack_qwinograd(const qt_conv_args& args, int columns, Memory* memory) {
  const int64_t channels = args.in_channels, panel_bytes = checked_product({(channels + 1) / 2, 9, 2, columns});
  const int64_t count = (int64_t{args.out_channels} + columns - 1) / columns;
  // One block, so that a panel begins where the one before it ends.
  int8_t* weight = reinterpret_cast<int8_t*>(memory->allocate(checked_product({count, panel_bytes})));
  int32_t* start = reinterpret_cast<int32_t*>(memory->allocate(checked_product({count, columns, 4})));
  float* bias = reinterpret_cast<float*>(memory->allocate(count * columns * 4));
  float* multiplier = reinterpret_cast<float*>(memory->allocate(count * columns * 4));
  std::vector<QwinogradPanel> panels;
  for (int64_t at = 0; at < args.out_channels; at += columns, weight += panel_bytes) {
    const int used = static_cast<int>(std::min<int64_t>(columns, args.out_channels - at));
    panels.push_back({at, used, weight, start + at, bias + at, multiplier + at});
    pack_panel(static_cast<const int8_t*>(args.weight) + at * 9 * channels, channels, used, columns, weight);
    for (int64_t o = at; o < at + used; o++) {
      if (args.bias_i32 != nullptr) start[o] = args.bias_i32[o];
      if (args.bias_f32 != nullptr) bias[o] = args.bias_f32[o];
      multiplier[o] = args.multiplier[o];
    }
  }
  return panels;
}

}  // namespace qtool
