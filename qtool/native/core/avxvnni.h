// The products of AVX-VNNI, for the instruction set files that have it. As assembly, since GCC 12 spills the
// accumulators of intrinsics; without the prefix an assembler takes the encoding of AVX512-VNNI.
#pragma once

#include <immintrin.h>

#if QT_EMULATE_AVXVNNI
#define QT_VEX ""
#else
#define QT_VEX "%{vex%} "
#endif

namespace qtool {
namespace {

// sum[i] += a[4 i] * b[4 i] + ... + a[4 i + 3] * b[4 i + 3], of u8 and s8.
static inline __attribute__((always_inline)) void add_products8(__m256i& sum, __m256i a, __m256i b) {
  __asm__(QT_VEX "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

// sum[i] += a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1], of s16.
static inline __attribute__((always_inline)) void add_products16(__m256i& sum, __m256i a, __m256i b) {
  __asm__(QT_VEX "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

}  // namespace
}  // namespace qtool
