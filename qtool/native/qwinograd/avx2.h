// Blocks of 6 tiles x 16 channels of M, for the instruction set files with registers of 32 bytes. Before it includes
// this, such a file has dot(sum, pair, first, second), which adds the products of a pair of V with two registers of U.
#include <immintrin.h>

#include "qconv/finish_avx2.h"
#include "qwinograd/product.h"

namespace qtool {
namespace {

using Register = __m256i;
typedef uint16_t Words __attribute__((vector_size(32)));
typedef int16_t SignedWords __attribute__((vector_size(32)));
typedef uint32_t Numbers __attribute__((vector_size(32)));
typedef int32_t SignedNumbers __attribute__((vector_size(32)));

constexpr int kRows = 6;

INLINE Words words_of(const uint8_t* bytes) {
  return (Words)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)bytes));
}

template <int R>
void multiply_tiles(const Product& product) {
  const int64_t step = product.step;
  const auto m = [&](int r) { return (__m256i*)(product.m + r * product.m_step); };
  __m256i sum[R][2];
  UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  if (product.adds) {
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2; v++) sum[r][v] = _mm256_load_si256(m(r) + v);
  }
  const __m256i *weight = (const __m256i*)product.u, *end = weight + product.pairs * 2;
  const int32_t *v = product.v, *last = v + 3 * step;  // a second base: an address has no factor of 3
  for (; weight != end; v++, last++, weight += 2) {
    const __m256i first = _mm256_load_si256(weight), second = _mm256_load_si256(weight + 1);
    UNROLL for (int r = 0; r < R; r++) dot(sum[r], r < 3 ? v + r * step : last + (r - 3) * step, first, second);
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2; v++) _mm256_store_si256(m(r) + v, sum[r][v]);
}

constexpr MultiplyTiles kMultiply[kRows] = {multiply_tiles<1>, multiply_tiles<2>, multiply_tiles<3>,
                                            multiply_tiles<4>, multiply_tiles<5>, multiply_tiles<6>};

}  // namespace
}  // namespace qtool

#include "qwinograd/body.h"
