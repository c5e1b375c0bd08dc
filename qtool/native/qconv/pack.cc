#include "qconv/pack.h"

#include <algorithm>
#include <cstring>

namespace qtool {
namespace {

void pack(const int8_t* weight, const QconvDepth& depth, const QconvKernel& kernel, const QconvPanel& panel,
          int8_t* packed) {
  const int64_t group = kernel.group, width = panel.vectors * kernel.step;
  for (int c = 0; c < panel.columns; c++) {
    for (int64_t tap = 0; tap < depth.taps; tap++) {
      for (int64_t i = 0; i < depth.length; i++) {
        const int64_t k = tap * depth.padded + i;
        packed[(k / group * width + c) * group + k % group] = *weight++;
      }
    }
  }
}

// The same for groups of G and taps without padding: a walk along what is written takes a third of the time.
template <int G>
void pack_groups(const int8_t* weight, const QconvDepth& depth, const QconvKernel& kernel, const QconvPanel& panel,
                int8_t* packed) {
  const int64_t length = depth.taps * depth.length, width = panel.vectors * kernel.step;
  for (int64_t s = 0; s < length / G; s++) {
    for (int c = 0; c < panel.columns; c++) std::memcpy(packed + (s * width + c) * G, weight + c * length + s * G, G);
  }
}

// What must be taken from the second weight of a pair so that they add up to -128..128.
int beyond(int first, int second) {
  const int sum = first + second;
  return sum - std::clamp(sum, -128, 128);
}

// Takes what is too much for a pair out of a packed panel and makes further steps of it; see qconv.h.
QconvRest split_pairs(int8_t* packed, const QconvDepth& depth, int64_t tap_bytes, Memory* memory) {
  const int64_t step_bytes = tap_bytes / (depth.padded / 4);
  std::vector<int32_t> begins = {0}, at;
  std::vector<int8_t> rest;
  for (int64_t tap = 0; tap < depth.taps; tap++) {
    for (int64_t i = 0; i < depth.padded; i += 4, packed += step_bytes) {
      rest.resize(rest.size() + step_bytes);
      int8_t* step = rest.data() + rest.size() - step_bytes;
      bool any = false;
      for (int64_t j = 1; j < step_bytes; j += 2) {
        const int more = beyond(packed[j - 1], packed[j]);
        packed[j] = static_cast<int8_t>(packed[j] - more);
        step[j] = static_cast<int8_t>(more);
        any |= more != 0;
      }
      if (any) {
        at.push_back(static_cast<int32_t>(i));
      } else {
        rest.resize(rest.size() - step_bytes);
      }
    }
    begins.push_back(static_cast<int32_t>(at.size()));
  }
  const auto kept = [memory](const auto& values) {
    const int64_t bytes = values.size() * sizeof(values[0]);
    uint8_t* copy = memory->allocate(bytes);
    if (bytes > 0) std::memcpy(copy, values.data(), bytes);
    return copy;
  };
  return {reinterpret_cast<int32_t*>(kept(begins)), reinterpret_cast<int32_t*>(kept(at)),
          reinterpret_cast<int8_t*>(kept(rest))};
}

// start, bias and multiplier of the channels of a panel.
void pack_numbers(const qt_conv_args& args, const QconvDepth& depth, const std::vector<std::vector<int64_t>>& tap_sets,
                  int width, QconvPanel* panel, Memory* memory) {
  const int64_t sets = tap_sets.size();
  int32_t* start = reinterpret_cast<int32_t*>(memory->allocate(checked_product({sets, width, 4})));
  float* bias = reinterpret_cast<float*>(memory->allocate(width * 4));
  float* multiplier = reinterpret_cast<float*>(memory->allocate(width * 4));
  for (int c = 0; c < panel->columns; c++) {
    const int64_t output = panel->output + c;
    const std::vector<int64_t> sums = qconv_tap_sums(args, depth, output);
    for (int64_t s = 0; s < sets; s++) {
      int64_t sum = 0;
      for (const int64_t tap : tap_sets[s]) sum += sums[tap];
      start[s * width + c] = qconv_start(args, output, sum);
    }
    if (args.bias_f32 != nullptr) bias[c] = args.bias_f32[output];
    multiplier[c] = args.multiplier[output];
  }
  panel->start = start;
  panel->bias = bias;
  panel->multiplier = multiplier;
}

}  // namespace

std::vector<int64_t> qconv_tap_sums(const qt_conv_args& args, const QconvDepth& depth, int64_t output) {
  const int8_t* weight = static_cast<const int8_t*>(args.weight) + output * depth.taps * depth.length;
  std::vector<int64_t> sums(depth.taps);
  for (int64_t& sum : sums) {
    for (int64_t i = 0; i < depth.length;) {  // in 32 bits as far as they hold: the compiler makes vectors of it
      const int64_t end = std::min(depth.length, i + (int64_t{1} << 20));
      int32_t part = 0;
      for (; i < end; i++) part += *weight++;
      sum += part;
    }
  }
  return sums;
}

int32_t qconv_start(const qt_conv_args& args, int64_t output, int64_t sum) {
  const int64_t bias = args.bias_i32 != nullptr ? args.bias_i32[output] : 0;
  return static_cast<int32_t>(static_cast<uint32_t>(bias - args.x_zero * sum));
}

std::vector<QconvPanel> pack_qconv(const qt_conv_args& args, const QconvDepth& depth,
                                   const std::vector<std::vector<int64_t>>& tap_sets, const QconvKernel& kernel,
                                   Memory* memory) {
  const int64_t inputs = args.in_channels / args.groups, outputs = args.out_channels / args.groups;
  std::vector<QconvPanel> panels;
  for (int64_t first = 0; first < args.out_channels; first += outputs) {
    for (int64_t at = 0; at < outputs; at += kernel.columns) {
      const int columns = static_cast<int>(std::min<int64_t>(kernel.columns, outputs - at));
      const int vectors = (columns + kernel.step - 1) / kernel.step, width = vectors * kernel.step;
      QconvPanel panel = {};
      panel.input = first / outputs * inputs;
      panel.output = first + at;
      panel.columns = columns;
      panel.vectors = vectors;
      panel.tap_bytes = checked_product({depth.padded, width});
      int8_t* weight = reinterpret_cast<int8_t*>(memory->allocate(checked_product({depth.taps, panel.tap_bytes})));
      panel.weight = weight;
      const int8_t* source = static_cast<const int8_t*>(args.weight) + panel.output * depth.taps * depth.length;
      if (depth.length != depth.padded) {
        pack(source, depth, kernel, panel, weight);
      } else if (kernel.group == 2) {
        pack_groups<2>(source, depth, kernel, panel, weight);
      } else {
        pack_groups<4>(source, depth, kernel, panel, weight);
      }
      if (kernel.split) panel.rest = split_pairs(weight, depth, panel.tap_bytes, memory);
      pack_numbers(args, depth, tap_sets, width, &panel, memory);
      panels.push_back(panel);
    }
  }
  return panels;
}

double qconv_rest_share(const qt_conv_args& args, const QconvDepth& depth, const QconvKernel& kernel) {
  const int8_t* weight = static_cast<const int8_t*>(args.weight);
  const int64_t outputs = args.out_channels / args.groups, steps = depth.taps * depth.padded / 4;
  int64_t rest = 0, all = 0;
  std::vector<uint8_t> needed(steps);
  for (int64_t o = 0; o < args.out_channels; o++) {
    const int64_t column = o % outputs % kernel.columns;
    if (column == 0) std::fill(needed.begin(), needed.end(), 0);
    for (int64_t tap = 0; tap < depth.taps; tap++, weight += depth.length) {
      for (int64_t i = 1; i < depth.length; i += 2) {
        needed[(tap * depth.padded + i) / 4] |= beyond(weight[i - 1], weight[i]) != 0;
      }
    }
    if (column + 1 < kernel.columns && (o + 1) % outputs != 0) continue;
    rest += std::count(needed.begin(), needed.end(), 1);
    all += steps;
  }
  return static_cast<double>(rest) / static_cast<double>(all);
}

}  // namespace qtool
