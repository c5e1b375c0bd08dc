// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED, TDPBUSD,
// TILERELEASE. Where those raise #GP or #UD, the process ends with a message.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/tile.h"

namespace qtool {
namespace {

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

struct Tile {
  int rows, row_bytes;
  uint8_t data[kMostRows][kMostBytes];
};

struct Unit {
  bool is_configured;
  Tile tiles[kTiles];
};

thread_local Unit unit = {};

void fault_unless(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "tile unit: %s\n", what);
  std::abort();
}

Tile& configured(int tile) {
  fault_unless(unit.is_configured, "#UD: the tiles are not configured");
  fault_unless(tile >= 0 && tile < kTiles && unit.tiles[tile].rows > 0, "#UD: the tile is not configured");
  return unit.tiles[tile];
}

}  // namespace

void emulate_tile_config(const TileConfig& config) {
  fault_unless(config.palette == 1, "#GP: the palette is not 1");
  fault_unless(config.start_row < kMostRows, "#GP: the start row is not in 0..15");
  for (const uint8_t byte : config.reserved) fault_unless(byte == 0, "#GP: a reserved byte is not 0");
  std::memset(&unit, 0, sizeof(unit));
  for (int t = 0; t < 16; t++) {
    const int rows = config.rows[t], row_bytes = config.row_bytes[t];
    fault_unless(t < kTiles || (rows == 0 && row_bytes == 0), "#GP: palette 1 has no such tile");
    fault_unless(rows <= kMostRows && row_bytes <= kMostBytes, "#GP: a tile is larger than 16 rows of 64 bytes");
    fault_unless((rows == 0) == (row_bytes == 0), "#GP: a tile has rows without bytes, or bytes without rows");
    if (t >= kTiles) continue;
    unit.tiles[t].rows = rows;
    unit.tiles[t].row_bytes = row_bytes;
  }
  fault_unless(config.start_row == 0, "a start row is only for an interrupted load or store");
  unit.is_configured = true;
}

void emulate_tile_load(int tile, const void* from, int64_t pitch) {
  Tile& t = configured(tile);
  std::memset(t.data, 0, sizeof(t.data));
  for (int r = 0; r < t.rows; r++) {
    std::memcpy(t.data[r], static_cast<const uint8_t*>(from) + r * pitch, static_cast<size_t>(t.row_bytes));
  }
}

void emulate_tile_store(int tile, void* to, int64_t pitch) {
  const Tile& t = configured(tile);
  for (int r = 0; r < t.rows; r++) {
    std::memcpy(static_cast<uint8_t*>(to) + r * pitch, t.data[r], static_cast<size_t>(t.row_bytes));
  }
}

void emulate_tile_dot(int sum, int a, int b) {
  Tile &s = configured(sum), &left = configured(a), &right = configured(b);
  fault_unless(sum != a && sum != b && a != b, "#UD: a tile is named twice");
  fault_unless(s.row_bytes % 4 == 0 && left.row_bytes % 4 == 0, "#UD: the bytes of a row are no multiple of 4");
  fault_unless(s.rows == left.rows, "#UD: the sums and a have different rows");
  fault_unless(s.row_bytes == right.row_bytes, "#UD: the sums and b have different columns");
  fault_unless(left.row_bytes / 4 == right.rows, "#UD: a has not four bytes for each row of b");
  for (int m = 0; m < s.rows; m++) {
    uint32_t row[kMostBytes / 4];
    std::memcpy(row, s.data[m], sizeof(row));
    for (int k = 0; k < right.rows; k++) {
      const uint8_t* four = left.data[m] + 4 * k;
      const int8_t* weight = reinterpret_cast<const int8_t*>(right.data[k]);
      for (int n = 0; n < s.row_bytes / 4; n++, weight += 4) {
        row[n] += static_cast<uint32_t>(four[0] * weight[0] + four[1] * weight[1] + four[2] * weight[2] +
                                        four[3] * weight[3]);
      }
    }
    std::memcpy(s.data[m], row, static_cast<size_t>(s.row_bytes));
  }
}

void emulate_tile_release() { std::memset(&unit, 0, sizeof(unit)); }

}  // namespace qtool
