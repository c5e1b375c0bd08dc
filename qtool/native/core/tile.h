// The tile unit of AMX: eight tiles of up to 16 rows x 64 bytes, each thread's own. Only instruction set files include
// this.
//
//   tile_config(config)        all tiles become zero
//   tile_load<T>(from, pitch)  row r of tile T is read at from + r * pitch bytes; pitch 0 repeats one row
//   tile_store<T>(to, pitch)
//   tile_dot<S, A, B>()        s[m][n] += sum over k, j of u8 a[m][4 * k + j] * s8 b[k][4 * n + j], int32 modulo 2^32
//   tile_release()             gives the tiles back, so that nothing is kept for them when threads are switched
//
// They are assembly of our own: GCC's _tile_loadd tells the compiler neither that it reads memory nor that it must stay
// where it is, and its _tile_loadconfig that it reads 8 of 64 bytes.
//
// With QT_EMULATE_AMX they call plain C++ that does what the unit does and ends the process where the unit would raise
// an exception (core/tile_emulation.cc): so kernels are tested to the bit on CPUs that have no tiles.
#pragma once

#include <stdint.h>

namespace qtool {

// As LDTILECFG reads it: palette 1, tiles 0..7.
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "as the instruction reads it");

void emulate_tile_config(const TileConfig& config);
void emulate_tile_load(int tile, const void* from, int64_t pitch);
void emulate_tile_store(int tile, void* to, int64_t pitch);
void emulate_tile_dot(int sum, int a, int b);
void emulate_tile_release();

namespace {

#define TILE_INLINE static inline __attribute__((always_inline))

#if QT_EMULATE_AMX

TILE_INLINE void tile_config(const TileConfig& config) { emulate_tile_config(config); }

template <int T>
TILE_INLINE void tile_load(const void* from, int64_t pitch) {
  emulate_tile_load(T, from, pitch);
}

template <int T>
TILE_INLINE void tile_store(void* to, int64_t pitch) {
  emulate_tile_store(T, to, pitch);
}

template <int S, int A, int B>
TILE_INLINE void tile_dot() {
  emulate_tile_dot(S, A, B);
}

TILE_INLINE void tile_release() { emulate_tile_release(); }

#else

TILE_INLINE void tile_config(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" : : "m"(config)); }

template <int T>
TILE_INLINE void tile_load(const void* from, int64_t pitch) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(pitch), "i"(T) : "memory");
}

template <int T>
TILE_INLINE void tile_store(void* to, int64_t pitch) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(pitch), "i"(T) : "memory");
}

template <int S, int A, int B>
TILE_INLINE void tile_dot() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(S), "i"(A), "i"(B));
}

TILE_INLINE void tile_release() { __asm__ volatile("tilerelease" : : : "memory"); }

#endif

}  // namespace
}  // namespace qtool
