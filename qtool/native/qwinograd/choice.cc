#include "qwinograd/choice.h"

#include <algorithm>

#include "qwinograd/qwinograd.h"

namespace qtool {
namespace {

// V of a chunk is walked once a panel and should stay in the L2 cache. The weights are read and transformed once a
// chunk, so that there should be as many tiles as make that cheap.
constexpr int64_t kTransformedBytes = 224 << 10, kLeastTiles = 16, kMostTiles = 48;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of the grids of all tiles of a picture, one less for a tile that reaches over the edge.
int64_t grid_rows(int64_t out, int64_t size) { return out / size * (size + 2) + (out % size != 0 ? size + 1 : 0); }

// Pairs of an output row and a kernel row that see the picture.
int64_t rows_seen(int64_t in, int64_t out, int64_t pad) {
  int64_t seen = 0;
  for (int64_t k = -pad; k < 3 - pad; k++) {
    seen += std::max<int64_t>(0, std::min(out, in - k) - std::max<int64_t>(0, -k));
  }
  return seen;
}

}  // namespace

bool qwinograd_has_shape(const qt_conv_args& a) {
  return a.kernel_height == 3 && a.kernel_width == 3 && a.stride_height == 1 && a.stride_width == 1 &&
         a.dilation_height == 1 && a.dilation_width == 1 && a.groups == 1;
}

int64_t qwinograd_chunk_tiles(const qt_conv_args& a, int size) {
  const int64_t channels = ceil_div(a.in_channels, kQwinogradLanes) * kQwinogradLanes;
  return std::clamp(kTransformedBytes / ((size + 2) * (size + 2) * channels * 2), kLeastTiles, kMostTiles);
}

// Measured on Zen 3: 10 % more than a cycle for a product of 16 channels, and what a transform takes of weights (a
// pair), of a tile's input (8 pairs) and of its output (16 channels).
double qwinograd_cycles(const qt_conv_args& a, int size) {
  const double pairs = ceil_div(a.in_channels, 2), panels = ceil_div(a.out_channels, kQwinogradColumns);
  const double rows = grid_rows(a.out_height, size), columns = grid_rows(a.out_width, size);
  const double products = double(a.batch) * rows * columns;
  const int64_t tiles = int64_t{a.batch} * ceil_div(a.out_height, size) * ceil_div(a.out_width, size);
  const double chunks = ceil_div(tiles, qwinograd_chunk_tiles(a, size));
  const double weight = size == 2 ? 60 : 130, input = size == 2 ? 50 : 150, output = size == 2 ? 100 : 300;
  return 1.1 * products + chunks * weight + double(tiles) * (input / 8 / panels + output / pairs);
}

double qconv_cycles(const qt_conv_args& a) {
  const double rows = rows_seen(a.in_height, a.out_height, a.pad_top);
  const double columns = rows_seen(a.in_width, a.out_width, a.pad_left);
  const double vectors = ceil_div(a.out_channels, 8), panels = ceil_div(a.out_channels, kQwinogradColumns);
  return double(a.batch) * rows * columns * vectors / (2 * panels);  // the second vector of the last panel may be unused
}

}  // namespace qtool
