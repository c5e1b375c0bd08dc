// A product of matrices on the tile unit (core/tile.h), block by block: four accumulators, 64 bytes of k a step.
//
// A block is R tiles of 16 rows by 4 / R tiles of 16 columns. 2 x 2 needs 4 loads for 4 products. 4 x 1 reads a weight
// once for 64 rows; 1 x 4 wastes no products on 16 rows or fewer. A product takes 16 cycles whatever its tiles' sizes
// are, a load of a tile 9 from the L1 cache (figures of a Granite Rapids core). What else the unit wants:
//
//   - The store of an accumulator takes as long as a product, but beside other products. So block t begins with the
//     stores of block t - 1, each just before that accumulator is loaded anew and gets its first product.
//   - Sums whose store is still under way are read slowly. So those of block t - 2 are finished (made bytes, or floats)
//     while block t multiplies, from a second buffer: two pieces of work a step, over the first four steps.
//   - An accumulator begins as 16 copies of one row (a load with pitch 0): start values cost nothing.
//   - Rows of a should each lie in one cache line: two lines a row make a load five times as slow.
//   - Prefetching into the L1 cache takes the load ports that tiles need. Prefetching the next panel into the L2 cache,
//     spread over the blocks of this one, hides a part of its way from memory.
//
// Only instruction set files include this.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "core/tile.h"

namespace qtool {
namespace {

// Row r of tile i is read at tiles[i] + r * pitch + the offset of the step, which next() gives one after another.
struct TileRows {
  const uint8_t* const* tiles;  // [blocks * R]
  int64_t blocks, pitch, steps;
  const int64_t* offsets;  // [steps]
  const int64_t* begin() const { return offsets; }
  static int64_t next(const int64_t** step) { return *(*step)++; }
};

// Rows whose steps follow each other.
struct DenseTileRows {
  const uint8_t* const* tiles;
  int64_t blocks, pitch, steps;
  int64_t begin() const { return -64; }
  static int64_t next(int64_t* step) { return *step += 64; }
};

// A panel: 4 / R tiles of 16 columns. Tile v of step k is read at weight + k * step + v * tile, its rows `pitch` apart.
struct TileColumns {
  const int8_t* weight;
  int64_t step, tile, pitch;
  const int32_t* start;  // tile v begins with 16 numbers at start + v * start_tile
  int64_t start_tile;
  const int8_t* next;  // `next_lines` cache lines to be prefetched meanwhile
  int64_t next_lines;
};

// The sums of one block of one panel; block -1 is none. Tile i of it (row tile i / V, column tile i % V, V = 4 / R) is
// [16][16] at sums + 256 * i.
struct TileSums {
  int32_t* sums;
  int64_t panel, block;
};

constexpr int kTileSums = 256, kFinishParts = 16;

// Accumulator I is tile I. It is stored, and loaded with its start.
template <int R, int I>
TILE_INLINE void exchange(const TileColumns& c, int32_t* sums) {
  tile_store<I>(sums + I * kTileSums, 64);
  tile_load<I>(c.start + I % (4 / R) * c.start_tile, 0);
}

// Product I of a step, and the loads that come with it.
template <int R, int I>
TILE_INLINE void multiply(const uint8_t* const (&a)[R], int64_t pitch, int64_t offset, const TileColumns& c,
                          const int8_t* weight) {
  constexpr int kA = R == 2 ? 4 + I / 2 : R == 4 ? 5 + I % 3 : 4, kB = R == 2 ? 6 + I % 2 : R == 4 ? 4 : 5 + I % 3;
  if constexpr (I % (4 / R) == 0) tile_load<kA>(a[I / (4 / R)] + offset, pitch);
  if constexpr (I < 4 / R) tile_load<kB>(weight + I * c.tile, c.pitch);
  tile_dot<I, kA, kB>();
}

// Multiplies a block, while the sums of the block before it are stored to `last` and those of the one before that,
// `done`, are finished.
template <int R, class Rows, class Work>
TILE_INLINE void run_block(const Rows& given, const TileColumns& columns, int64_t block, int32_t* last,
                           const TileSums& done, const Work& work) {
  const Rows rows = given;  // copies, which no store of sums can change
  const TileColumns c = columns;
  const int64_t pitch = rows.pitch, steps = rows.steps;
  auto step = rows.begin();
  const int64_t first = Rows::next(&step);
  const uint8_t* a[R];
  for (int r = 0; r < R; r++) a[r] = rows.tiles[block * R + r];
  const int8_t* weight = c.weight;
  const bool single = steps == 1;
  exchange<R, 0>(c, last);
  multiply<R, 0>(a, pitch, first, c, weight);
  exchange<R, 1>(c, last);
  multiply<R, 1>(a, pitch, first, c, weight);
  if (single) work.finish(done, 0, 8);
  exchange<R, 2>(c, last);
  multiply<R, 2>(a, pitch, first, c, weight);
  exchange<R, 3>(c, last);
  multiply<R, 3>(a, pitch, first, c, weight);
  if (single) work.finish(done, 8, 8);

  const int64_t mixed = steps > 4 ? 4 : steps > 2 ? 2 : steps - 1;
  const int count = single ? 0 : static_cast<int>(8 / mixed);
  for (int part = 0; part < mixed * 2 * count; part += 2 * count) {
    const int64_t offset = Rows::next(&step);
    weight += c.step;
    multiply<R, 0>(a, pitch, offset, c, weight);
    work.finish(done, part, count);
    multiply<R, 1>(a, pitch, offset, c, weight);
    multiply<R, 2>(a, pitch, offset, c, weight);
    work.finish(done, part + count, count);
    multiply<R, 3>(a, pitch, offset, c, weight);
  }

  const int64_t rest = steps - 1 - mixed;
  const int64_t lines = rest > 0 ? (c.next_lines + rows.blocks * rest - 1) / (rows.blocks * rest) : 0;
  const int8_t* next = c.next + block * rest * lines * 64;
  const int64_t here = next < c.next + c.next_lines * 64 ? lines * 64 : 0;
  for (int64_t left = rest; left > 0; left--) {
    const int64_t offset = Rows::next(&step);
    weight += c.step;
    multiply<R, 0>(a, pitch, offset, c, weight);
    multiply<R, 1>(a, pitch, offset, c, weight);
    multiply<R, 2>(a, pitch, offset, c, weight);
    multiply<R, 3>(a, pitch, offset, c, weight);
    for (const int8_t* to = next + here; next != to; next += 64) _mm_prefetch((const char*)next, _MM_HINT_T1);
  }
}

TILE_INLINE void store_sums(int32_t* sums) {
  tile_store<0>(sums, 64);
  tile_store<1>(sums + kTileSums, 64);
  tile_store<2>(sums + 2 * kTileSums, 64);
  tile_store<3>(sums + 3 * kTileSums, 64);
}

TILE_INLINE void configure_tiles() {
  TileConfig config = {};
  config.palette = 1;
  for (int t = 0; t < 8; t++) config.row_bytes[t] = 64;
  for (int t = 0; t < 8; t++) config.rows[t] = 16;
  tile_config(config);
}

// All blocks of all panels, panel by panel. Gives each block's sums to work.finish(sums, from, count), which finishes
// parts from .. from + count - 1 of 16; work.columns(p) is panel p.
template <int R, class Rows, class Work>
TILE_INLINE void tile_product(const Rows& rows, int64_t panels, const Work& work) {
  alignas(64) int32_t sums[2][4 * kTileSums];
  configure_tiles();
  TileSums done = {sums[0], 0, -1}, last = {sums[1], 0, -1};
  for (int64_t p = 0; p < panels; p++) {
    const TileColumns columns = work.columns(p);
    for (int64_t b = 0; b < rows.blocks; b++) {
      run_block<R>(rows, columns, b, last.sums, done, work);
      const TileSums next = {done.sums, p, b};
      done = last;
      last = next;
    }
  }
  store_sums(last.sums);
  work.finish(done, 0, kFinishParts);
  work.finish(last, 0, kFinishParts);
  tile_release();
}

}  // namespace
}  // namespace qtool
