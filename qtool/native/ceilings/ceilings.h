// What the machine can do at most: loops without anything around them, to measure other kernels against.
//
// Chunk c has `bytes` bytes of its own at x + c * bytes and gives one int64 at out[c]. For the full rate x is a multiple
// of 64.
//   QT_CEILING_INT8   rounds * sum over i of a[i] * b[i], a = 64 u8 (0..127) at x, b = 64 s8 at x + 64: 128 operations a round
//   QT_CEILING_FLOAT  rounds * sum over i of a[i] * b[i], a = 16 float32 at x, b = 16 at x + 64: 32 operations a round
//   QT_CEILING_READ   rounds * sum of all int32 words: `bytes` bytes a round
// Lanes are summed in 32 bits (in float32): the result is exact while every partial sum fits, and says nothing beyond.
//
// `rounds` of the products is a multiple of 1024: kernels keep several sums, or tiles of 256 rounds. `bytes` is a
// multiple of 1024.
#pragma once

#include <stdint.h>

#include "qtool.h"

namespace qtool {

using CeilingLoop = int64_t (*)(const uint8_t* x, int64_t bytes, int64_t rounds);

struct CeilingKernels {
  CeilingLoop int8, float32, read;
};

constexpr int64_t kCeilingRounds = 1024, kCeilingBytes = 1024;

#define QT_KERNEL(isa, name, tile) extern const CeilingKernels name;
#include "ceilings/kernels.inc"
#undef QT_KERNEL

// Of AVX2 and of AVX512-VNNI, for the rows above them.
int64_t ceiling_float_avx2(const uint8_t* x, int64_t bytes, int64_t rounds);
int64_t ceiling_read_avx2(const uint8_t* x, int64_t bytes, int64_t rounds);
int64_t ceiling_float_avx512(const uint8_t* x, int64_t bytes, int64_t rounds);
int64_t ceiling_read_avx512(const uint8_t* x, int64_t bytes, int64_t rounds);

}  // namespace qtool
