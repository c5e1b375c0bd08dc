// 16 floats at a time; the sums in two registers of 8 doubles.
#include <immintrin.h>

#include "srows/srows.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // both: gcc 12 finds it in its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace qtool {
namespace {

constexpr int kLanes = 16;

static inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
}

static inline __m512d low_half(__m512 x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
static inline __m512d high_half(__m512 x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }

// exp of x <= 0 (or NaN): 2^n times a polynomial in r = x - n ln 2 (expf of Cephes, S. Moshier).
static inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // below, exp rounds to 0; in this order NaN passes
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

void softmax(const float* x, float* y, int64_t n) {
  const __m512 least = _mm512_set1_ps(-__builtin_inff());
  __m512 most = least;
  for (int64_t i = 0; i < n; i += kLanes) {
    most = _mm512_max_ps(_mm512_mask_loadu_ps(least, first_lanes(n - i), x + i), most);
  }
  most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  __m512d sums[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 e = exponential(_mm512_sub_ps(_mm512_mask_loadu_ps(least, lanes, x + i), most));
    sums[0] = _mm512_add_pd(sums[0], low_half(e));
    sums[1] = _mm512_add_pd(sums[1], high_half(e));
    _mm512_mask_storeu_ps(y + i, lanes, e);
  }
  const __m512 inverse = _mm512_set1_ps((float)(1 / _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]))));
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(n - i);
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, y + i), inverse));
  }
}

static inline double mean_of(const float* x, int64_t n) {
  __m512d sums[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  for (int64_t i = 0; i < n; i += kLanes) {
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
    sums[0] = _mm512_add_pd(sums[0], low_half(a));
    sums[1] = _mm512_add_pd(sums[1], high_half(a));
  }
  return _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1])) / (double)n;
}

static inline double variance_of(const float* x, int64_t n, double mean) {
  const __m512d m = _mm512_set1_pd(mean);
  __m512d sums[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 a = _mm512_maskz_loadu_ps(lanes, x + i);
    const __m512d low = _mm512_maskz_sub_pd((__mmask8)lanes, low_half(a), m);
    const __m512d high = _mm512_maskz_sub_pd((__mmask8)(lanes >> 8), high_half(a), m);
    sums[0] = _mm512_fmadd_pd(low, low, sums[0]);
    sums[1] = _mm512_fmadd_pd(high, high, sums[1]);
  }
  return _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1])) / (double)n;
}

void layer_norm(const float* x, float* y, int64_t n, float eps, const float* scale, const float* shift) {
  const double mean = mean_of(x, n);
  const float inverse = (float)(1 / __builtin_sqrt(variance_of(x, n, mean) + eps));
  const float whole = (float)mean;  // the mean in two floats: the first difference is exact where it cancels most
  const __m512 m = _mm512_set1_ps(whole), rest = _mm512_set1_ps((float)(mean - whole));
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 a = _mm512_sub_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + i), m), rest);
    const __m512 b = _mm512_mul_ps(a, _mm512_set1_ps(inverse));
    const __m512 s = _mm512_maskz_loadu_ps(lanes, scale + i), t = _mm512_maskz_loadu_ps(lanes, shift + i);
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_fmadd_ps(b, s, t));
  }
}

}  // namespace

const SrowsKernels srows_avx512 = {softmax, layer_norm};

}  // namespace qtool
