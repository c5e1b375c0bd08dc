// Blocks of 12 tiles x 32 channels of M: 24 accumulators of VPDPWSSD over pairs of input channels. It does half as many
// products as VPDPBUSD does of bytes, so that only tiles of 4 x 4 gain.
#include <immintrin.h>

#include "qconv/finish_avx512.h"
#include "qwinograd/product.h"

namespace qtool {
namespace {

using Register = __m512i;
typedef uint16_t Words __attribute__((vector_size(64)));
typedef int16_t SignedWords __attribute__((vector_size(64)));
typedef uint32_t Numbers __attribute__((vector_size(64)));
typedef int32_t SignedNumbers __attribute__((vector_size(64)));

constexpr int kRows = 12;

INLINE Words words_of(const uint8_t* bytes) {
  return (Words)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)bytes));
}

// As assembly: with the intrinsic GCC 12 copies and spills the accumulators.
INLINE void dot(__m512i (&sum)[2], const int32_t* pair, __m512i first, __m512i second) {
  __m512i v;
  __asm__("vpbroadcastd %3, %2\n\tvpdpwssd %4, %2, %0\n\tvpdpwssd %5, %2, %1"
          : "+v"(sum[0]), "+v"(sum[1]), "=&v"(v)
          : "m"(*pair), "v"(first), "v"(second));
}

template <int R>
void multiply_tiles(const Product& product) {
  const int64_t step = product.step;
  const auto m = [&](int r) { return (__m512i*)(product.m + r * product.m_step); };
  __m512i sum[R][2];
  UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
  if (product.adds) {
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2; v++) sum[r][v] = _mm512_load_si512(m(r) + v);
  }
  const __m512i *weight = (const __m512i*)product.u, *end = weight + product.pairs * 2;
  const int32_t* base[4];  // addresses have no factors of 3 and above 4
  UNROLL for (int b = 0; b < 4; b++) base[b] = product.v + b * 3 * step;
  for (int64_t i = 0; weight != end; i++, weight += 2) {
    const __m512i first = _mm512_load_si512(weight), second = _mm512_load_si512(weight + 1);
    UNROLL for (int r = 0; r < R; r++) dot(sum[r], base[r / 3] + r % 3 * step, first, second);
    UNROLL for (int b = 0; b < 4; b++) base[b]++;
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2; v++) _mm512_store_si512(m(r) + v, sum[r][v]);
}

constexpr MultiplyTiles kMultiply[kRows] = {multiply_tiles<1>,  multiply_tiles<2>,  multiply_tiles<3>,
                                            multiply_tiles<4>,  multiply_tiles<5>,  multiply_tiles<6>,
                                            multiply_tiles<7>,  multiply_tiles<8>,  multiply_tiles<9>,
                                            multiply_tiles<10>, multiply_tiles<11>, multiply_tiles<12>};

}  // namespace
}  // namespace qtool

#include "qwinograd/body.h"

namespace qtool {

// Costs measured on Zen 4.
const QwinogradKernel qwinograd_avx512vnni_4x4 = {
    4, Winograd<4>::kShift, kColumns, 2 * kLanes, 1024 << 10, 32, {2.1, 270, 200, 380}, transform<4>, run<4>};

}  // namespace qtool
