// 12 accumulators of VPMADDWD over pairs of input channels.
#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

namespace qtool {
namespace {

// As assembly, and in this order: gcc 12 multiplies all first and spills the accumulators.
INLINE void dot(__m256i (&sum)[2], const int32_t* pair, __m256i first, __m256i second) {
  __m256i v, products;
  __asm__(
      "vpbroadcastd %4, %2\n\tvpmaddwd %5, %2, %3\n\tvpmaddwd %6, %2, %2\n\t"
      "vpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
      : "+x"(sum[0]), "+x"(sum[1]), "=&x"(v), "=&x"(products)
      : "m"(*pair), "x"(first), "x"(second));
}

}  // namespace
}  // namespace qtool

#include "qwinograd/avx2.h"

namespace qtool {

// Costs measured on Zen 3.
const QwinogradKernel qwinograd_avx2_2x2 = {
    2, Winograd<2>::kShift, kColumns, 2 * kLanes, 384 << 10, 16, {1.1, 60, 50, 100}, transform<2>, run<2>};
const QwinogradKernel qwinograd_avx2_4x4 = {
    4, Winograd<4>::kShift, kColumns, 2 * kLanes, 384 << 10, 16, {1.1, 130, 150, 300}, transform<4>, run<4>};

}  // namespace qtool
