// Up to 96 rows x 128 features in blocks of 2 x 2 tiles; 1 x 4 for up to 16 rows, 4 x 1 for 33 to 64.
// Weights are packed as for VPDPBUSD: a tile of them is 16 of its vectors, a panel's width apart.
#include "core/tile_product.h"
#include "qlinear_dynamic/avx512.h"

namespace qtool {
namespace {

constexpr int kRows = 96, kColumns = 128, kStep = 64, kLeastRows = 16, kTileRows = 16;

alignas(64) const int32_t kZeros[kLanes] = {};

template <int R>
struct Layer {
  static constexpr int V = 4 / R;
  const QlinearDynamicTile& tile;

  TileColumns columns(int64_t panel) const {
    const int64_t width = tile.vectors * kStep * 4;
    return {tile.weight + panel * V * 64, kTileRows * width, 64, width, kZeros, 0, tile.weight, 0};
  }

  __attribute__((noinline)) void finish(const TileSums& done, int from, int count) const {
    if (done.block < 0) return;
    for (int part = from; part < from + count; part++) {
      const int first = part * 4 / V;
      const int32_t* sums = done.sums + first / kTileRows * V * kTileSums + first % kTileRows * kLanes;
      UNROLL for (int v = 0; v < V; v++) {
        const Features features(tile, static_cast<int>(done.panel) * V * kLanes + v * kLanes);
        UNROLL for (int i = 0; i < 4 / V; i++) {
          const int row = static_cast<int>(done.block) * R * kTileRows + first + i;
          if (row < tile.rows) features.finish(tile, row, _mm512_load_si512(sums + v * kTileSums + i * kLanes));
        }
      }
    }
  }
};

template <int R>
void run_blocks(const QlinearDynamicTile& tile) {
  const uint8_t* tiles[kRows / kTileRows + R];
  const int64_t count = (tile.rows + kTileRows - 1) / kTileRows, blocks = (count + R - 1) / R;
  for (int64_t t = 0; t < blocks * R; t++) {
    const int64_t row = (t < count ? t : 0) * kTileRows;  // what is more than `count` is dropped
    tiles[t] = static_cast<const uint8_t*>(tile.q) + row * tile.q_bytes;
  }
  const DenseTileRows rows = {tiles, blocks, tile.q_bytes, tile.groups / kTileRows};
  const int64_t width = Layer<R>::V * kLanes;
  tile_product<R>(rows, (tile.columns + width - 1) / width, Layer<R>{tile});
}

void run(const QlinearDynamicTile& tile) {
  if (tile.rows <= kTileRows) {
    run_blocks<1>(tile);
  } else if (tile.rows > 2 * kTileRows && tile.rows <= 4 * kTileRows) {
    run_blocks<4>(tile);
  } else {
    run_blocks<2>(tile);
  }
}

}  // namespace

const QlinearDynamicKernel qlinear_dynamic_amx = {
    kRows, kColumns, kStep, 4, 1, 64, kTileRows, kLeastRows, min_max, quantize, run};

}  // namespace qtool
