#include "qconv/pack.h"

#include <algorithm>

namespace qtool {
namespace {

// Where the weight for 4 * s + j and channel c lies; see qconv.h.
int64_t element(const QconvKernel& kernel, int vectors, int64_t s, int j, int c) {
  const int step = kernel.step;
  if (kernel.element_bytes == 1) return (s * vectors * step + c) * 4 + j;
  return (((s * vectors + c / step) * 2 + j % 2) * step + c % step) * 2 + j / 2;
}

template <class Element>
void pack(const int8_t* weight, const QconvDepth& depth, const QconvKernel& kernel, const QconvPanel& panel,
          Element* packed) {
  for (int c = 0; c < panel.columns; c++) {
    for (int64_t tap = 0; tap < depth.taps; tap++) {
      for (int64_t i = 0; i < depth.length; i++) {
        const int64_t s = (tap * depth.padded + i) / 4;
        packed[element(kernel, panel.vectors, s, static_cast<int>(i % 4), c)] = *weight++;
      }
    }
  }
}

}  // namespace

int32_t qconv_start(const qt_conv_args& args, int64_t output, int64_t depth) {
  const int8_t* weight = static_cast<const int8_t*>(args.weight) + output * depth;
  int64_t sum = 0;
  for (int64_t k = 0; k < depth; k++) sum += weight[k];
  const int64_t bias = args.bias_i32 != nullptr ? args.bias_i32[output] : 0;
  return static_cast<int32_t>(static_cast<uint32_t>(bias - args.x_zero * sum));
}

std::vector<QconvPanel> pack_qconv(const qt_conv_args& args, const QconvDepth& depth, const QconvKernel& kernel,
                                   Memory* memory) {
  const int64_t inputs = args.in_channels / args.groups, outputs = args.out_channels / args.groups;
  const int64_t real_depth = depth.taps * depth.length;
  std::vector<QconvPanel> panels;
  for (int64_t first = 0; first < args.out_channels; first += outputs) {
    for (int64_t at = 0; at < outputs; at += kernel.columns) {
      const int columns = static_cast<int>(std::min<int64_t>(kernel.columns, outputs - at));
      const int vectors = (columns + kernel.step - 1) / kernel.step, width = vectors * kernel.step;
      const int64_t output = first + at;
      uint8_t* weight = memory->allocate(checked_product({depth.taps, depth.padded, width, kernel.element_bytes}));
      int32_t* start = reinterpret_cast<int32_t*>(memory->allocate(width * 4));
      float* bias = reinterpret_cast<float*>(memory->allocate(width * 4));
      float* multiplier = reinterpret_cast<float*>(memory->allocate(width * 4));
      for (int c = 0; c < columns; c++) {
        start[c] = qconv_start(args, output + c, real_depth);
        if (args.bias_f32 != nullptr) bias[c] = args.bias_f32[output + c];
        multiplier[c] = args.multiplier[output + c];
      }
      panels.push_back({first / outputs * inputs, output, columns, vectors, weight, start, bias, multiplier});
      const int8_t* source = static_cast<const int8_t*>(args.weight) + output * real_depth;
      if (kernel.element_bytes == 1) {
        pack(source, depth, kernel, panels.back(), reinterpret_cast<int8_t*>(weight));
      } else {
        pack(source, depth, kernel, panels.back(), reinterpret_cast<int16_t*>(weight));
      }
    }
  }
  return panels;
}

}  // namespace qtool
