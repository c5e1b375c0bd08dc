// 4 pixels x 32 channels: a tap's weights and its pointer are loaded once for all 4 pixels.
#include <immintrin.h>

#include "sdwconv/sdwconv.h"

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 finds it in its own _mm512_max_ps

namespace qtool {
namespace {

constexpr int kPixels = 4, kLanes = 16;

#define UNROLL _Pragma("GCC unroll 8")

// Channels c .. c + V * 16 - 1, of which the last vector has `lanes`.
template <int P, int V>
static inline __attribute__((always_inline)) void run_channels(const SdwconvStrip& s, int64_t c, __mmask16 lanes) {
  __m512 sum[P][V];
  UNROLL for (int p = 0; p < P; ++p) {
    UNROLL for (int v = 0; v < V; ++v) sum[p][v] = _mm512_setzero_ps();
  }
  const float* weight = s.weight + c;
  for (int64_t t = 0; t < s.taps; ++t, weight += s.width) {
    const float* input = s.input[t] + c;
    UNROLL for (int v = 0; v < V; ++v) {
      const __m512 w = _mm512_load_ps(weight + v * kLanes);
      UNROLL for (int p = 0; p < P; ++p) {
        const float* at = input + p * s.step + v * kLanes;
        const __m512 x = v + 1 < V ? _mm512_loadu_ps(at) : _mm512_maskz_loadu_ps(lanes, at);
        sum[p][v] = _mm512_fmadd_ps(x, w, sum[p][v]);
      }
    }
  }
  const __m512 low = _mm512_set1_ps(s.low), high = _mm512_set1_ps(s.high);
  UNROLL for (int v = 0; v < V; ++v) {
    const __mmask16 use = v + 1 < V ? (__mmask16)0xffff : lanes;
    const __m512 bias = _mm512_load_ps(s.bias + c + v * kLanes);
    UNROLL for (int p = 0; p < P; ++p) {
      const int64_t at = p * s.channels + c + v * kLanes;
      __m512 y = _mm512_add_ps(sum[p][v], bias);
      if (s.residual != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(use, s.residual + at));
      y = _mm512_min_ps(high, _mm512_max_ps(low, y));  // in this order NaN passes
      _mm512_mask_storeu_ps(s.out + at, use, y);
    }
  }
}

template <int P>
static void run_strip(const SdwconvStrip& s) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= s.channels; c += 2 * kLanes) run_channels<P, 2>(s, c, 0xffff);
  for (; c < s.channels; c += kLanes) {
    const int64_t left = s.channels - c;
    run_channels<P, 1>(s, c, left >= kLanes ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1));
  }
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

const SdwconvKernel sdwconv_avx512 = {kPixels, kLanes, run};

}  // namespace qtool
