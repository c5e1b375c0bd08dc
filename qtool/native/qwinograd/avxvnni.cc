// 12 accumulators of VPDPWSSD over pairs of input channels. It does half as many products as VPDPBUSD does of bytes, so
// that only tiles of 4 x 4 gain.
#include <immintrin.h>
#include <stdint.h>

#include "core/avxvnni.h"

#define INLINE static inline __attribute__((always_inline))

namespace qtool {
namespace {

INLINE void dot(__m256i (&sum)[2], const int32_t* pair, __m256i first, __m256i second) {
  const __m256i v = _mm256_set1_epi32(*pair);
  add_products16(sum[0], v, first);
  add_products16(sum[1], v, second);
}

}  // namespace
}  // namespace qtool

#include "qwinograd/avx2.h"

namespace qtool {

// Costs of the other steps are AVX2's.
const QwinogradKernel qwinograd_avxvnni_4x4 = {
    4, Winograd<4>::kShift, kColumns, 2 * kLanes, 384 << 10, 16, {1.05, 130, 150, 300}, transform<4>, run<4>};

}  // namespace qtool
