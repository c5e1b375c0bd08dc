#include "qwinograd/choice.h"

#include <algorithm>

namespace qtool {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of the grids of all tiles of a picture.
int64_t grid_rows(int64_t out, int size) {
  const int left = static_cast<int>(out % size);
  return out / size * (size + 2) + (left != 0 ? __builtin_popcount(qwinograd_taken(size, left)) : 0);
}

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

int64_t qwinograd_chunk_tiles(const qt_conv_args& a, const QwinogradKernel& kernel) {
  const int64_t channels = ceil_div(a.in_channels, kernel.lanes) * kernel.lanes;
  const int64_t positions = (kernel.size + 2) * (kernel.size + 2);
  return std::max(kernel.chunk_bytes / (positions * (channels * 2 + kernel.columns * 4)), kernel.least_tiles);
}

double qwinograd_cycles(const qt_conv_args& a, const QwinogradKernel& kernel) {
  const QwinogradCosts& costs = kernel.costs;
  const double pairs = ceil_div(a.in_channels, 2), panels = ceil_div(a.out_channels, kernel.columns);
  const double rows = grid_rows(a.out_height, kernel.size), columns = grid_rows(a.out_width, kernel.size);
  const int64_t tiles = int64_t{a.batch} * ceil_div(a.out_height, kernel.size) * ceil_div(a.out_width, kernel.size);
  const double chunks = ceil_div(tiles, qwinograd_chunk_tiles(a, kernel));
  const double pair = costs.product * a.batch * rows * columns + costs.weight * chunks;
  return panels * (pairs * pair + costs.output * tiles) + costs.input * tiles * ceil_div(a.in_channels, kernel.lanes);
}

double qconv_cycles(const qt_conv_args& a, int isa) {
  const double rows = rows_seen(a.in_height, a.out_height, a.pad_top);
  const double columns = rows_seen(a.in_width, a.out_width, a.pad_left);
  const double pixels = double(a.batch) * rows * columns;
  // A cycle has a VPDPBUSD of 4 x 16 bytes, two of 4 x 8, or two VPMADDWD of 2 x 8.
  if (isa == QT_ISA_AVX512VNNI) return pixels * ceil_div(a.in_channels, 4) * ceil_div(a.out_channels, 16);
  if (isa == QT_ISA_AVXVNNI) return pixels * ceil_div(a.in_channels, 4) * ceil_div(a.out_channels, 8) / 2;
  return pixels * ceil_div(a.in_channels, 2) * ceil_div(a.out_channels, 8) / 2;
}

}  // namespace qtool
