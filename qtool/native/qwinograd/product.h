// The products of one position of the grid, as the instruction sets' files take them.
#pragma once

#include <stdint.h>

namespace qtool {
namespace {

// M of one position for some tiles and a panel of two registers.
struct Product {
  const int32_t* v;  // pairs
  int64_t step;      // from a tile to the next
  const int16_t* u;
  int64_t pairs;
  int32_t* m;
  int64_t m_step;    // from a tile to the next
  bool adds;  // to what is in m
};

using MultiplyTiles = void (*)(const Product& product);

}  // namespace
}  // namespace qtool
