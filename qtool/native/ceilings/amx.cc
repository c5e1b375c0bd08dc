// Four sums, as the tile products of the layers have them. Row r of a is the 64 bytes of a, column c of b those of b.
#include <string.h>

#include "ceilings/ceilings.h"
#include "core/tile.h"

namespace qtool {
namespace {

int64_t int8(const uint8_t* x, int64_t, int64_t rounds) {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; tile++) config.rows[tile] = 16, config.row_bytes[tile] = 64;
  alignas(64) uint8_t b[16][64];  // row k holds b[4 k .. 4 k + 3] for each of the 16 columns
  for (int k = 0; k < 16; k++) {
    for (int n = 0; n < 16; n++) memcpy(&b[k][4 * n], x + 64 + 4 * k, 4);
  }
  tile_config(config);
  tile_load<4>(x, 0);
  tile_load<5>(x, 0);
  tile_load<6>(b, 64);
  tile_load<7>(b, 64);
  for (int64_t round = 0; round < rounds; round += 1024) {
    tile_dot<0, 4, 6>();
    tile_dot<1, 5, 6>();
    tile_dot<2, 4, 7>();
    tile_dot<3, 5, 7>();
  }
  alignas(64) int32_t sums[4][256];
  tile_store<0>(sums[0], 64);
  tile_store<1>(sums[1], 64);
  tile_store<2>(sums[2], 64);
  tile_store<3>(sums[3], 64);
  tile_release();
  int64_t total = 0;
  for (int tile = 0; tile < 4; tile++) {
    for (int i = 0; i < 256; i++) total += sums[tile][i];
  }
  return total;
}

}  // namespace

const CeilingKernels ceilings_amx = {int8, ceiling_float_avx512, ceiling_read_avx512};

}  // namespace qtool
