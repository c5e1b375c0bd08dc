// 4 pixels x 16 channels: a tap's weights and its pointer are loaded once for all 4 pixels.
#include <immintrin.h>

#include "sdwconv/sdwconv.h"

namespace qtool {
namespace {

constexpr int kPixels = 4, kLanes = 8;

#define UNROLL _Pragma("GCC unroll 8")

// All ones in the first `count` lanes.
static inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Channels c .. c + V * 8 - 1; with Masked only the first `lanes` of one vector.
template <int P, int V, bool Masked>
static inline __attribute__((always_inline)) void run_channels(const SdwconvStrip& s, int64_t c, __m256i lanes) {
  __m256 sum[P][V];
  UNROLL for (int p = 0; p < P; ++p) {
    UNROLL for (int v = 0; v < V; ++v) sum[p][v] = _mm256_setzero_ps();
  }
  const float* weight = s.weight + c;
  for (int64_t t = 0; t < s.taps; ++t, weight += s.width) {
    const float* input = s.input[t] + c;
    UNROLL for (int v = 0; v < V; ++v) {
      const __m256 w = _mm256_load_ps(weight + v * kLanes);
      UNROLL for (int p = 0; p < P; ++p) {
        const float* at = input + p * s.step + v * kLanes;
        sum[p][v] = _mm256_fmadd_ps(Masked ? _mm256_maskload_ps(at, lanes) : _mm256_loadu_ps(at), w, sum[p][v]);
      }
    }
  }
  const __m256 low = _mm256_set1_ps(s.low), high = _mm256_set1_ps(s.high);
  UNROLL for (int v = 0; v < V; ++v) {
    const __m256 bias = _mm256_load_ps(s.bias + c + v * kLanes);
    UNROLL for (int p = 0; p < P; ++p) {
      const int64_t at = p * s.channels + c + v * kLanes;
      __m256 y = _mm256_add_ps(sum[p][v], bias);
      if (s.residual != nullptr) y = _mm256_add_ps(y, _mm256_maskload_ps(s.residual + at, lanes));
      y = _mm256_min_ps(high, _mm256_max_ps(low, y));  // in this order NaN passes
      if (Masked) {
        _mm256_maskstore_ps(s.out + at, lanes, y);
      } else {
        _mm256_storeu_ps(s.out + at, y);
      }
    }
  }
}

template <int P>
static void run_strip(const SdwconvStrip& s) {
  const __m256i all = _mm256_set1_epi32(-1);
  int64_t c = 0;
  for (; c + 2 * kLanes <= s.channels; c += 2 * kLanes) run_channels<P, 2, false>(s, c, all);
  for (; c + kLanes <= s.channels; c += kLanes) run_channels<P, 1, false>(s, c, all);
  if (c < s.channels) run_channels<P, 1, true>(s, c, first_lanes(s.channels - c));
}

void run(const SdwconvStrip& s) {
  switch (s.pixels) {
    case 1: return run_strip<1>(s);
    case 2: return run_strip<2>(s);
    case 3: return run_strip<3>(s);
    default: return run_strip<4>(s);
  }
}

}  // namespace

const SdwconvKernel sdwconv_avx2 = {kPixels, kLanes, run};

}  // namespace qtool
