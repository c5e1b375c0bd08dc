// 8 floats at a time; the sums in two registers of 4 doubles.
#include <immintrin.h>

#include "srows/srows.h"

namespace qtool {
namespace {

constexpr int kLanes = 8;

// All ones in the first `count` lanes, count < 8.
static inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first `left` numbers of x, at most 8; `rest` in the other lanes. Masks only where needed: they are slow on AMD.
static inline __m256 load(const float* x, int64_t left, __m256 rest) {
  if (left >= kLanes) return _mm256_loadu_ps(x);
  const __m256i lanes = first_lanes(left);
  return _mm256_blendv_ps(rest, _mm256_maskload_ps(x, lanes), _mm256_castsi256_ps(lanes));
}

static inline __m256 load(const float* x, int64_t left) { return load(x, left, _mm256_setzero_ps()); }

static inline void store(float* y, int64_t left, __m256 value) {
  if (left >= kLanes) {
    _mm256_storeu_ps(y, value);
  } else {
    _mm256_maskstore_ps(y, first_lanes(left), value);
  }
}

static inline __m256d low_half(__m256 x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
static inline __m256d high_half(__m256 x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }

static inline double sum_of(__m256d a, __m256d b) {
  const __m256d both = _mm256_add_pd(a, b);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

static inline float max_of(__m256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

static inline __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

// exp of x <= 0 (or NaN): 2^n times a polynomial in r = x - n ln 2 (expf of Cephes, S. Moshier). 2^n is multiplied in
// two halves, so that subnormal results are rounded once.
static inline __m256 exponential(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-104.0f), x);  // below, exp rounds to 0; in this order NaN passes
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 0);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(p, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}

void softmax(const float* x, float* y, int64_t n) {
  const __m256 least = _mm256_set1_ps(-__builtin_inff());
  __m256 most = least;
  for (int64_t i = 0; i < n; i += kLanes) most = _mm256_max_ps(load(x + i, n - i, least), most);
  most = _mm256_set1_ps(max_of(most));
  __m256d sums[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  for (int64_t i = 0; i < n; i += kLanes) {
    const __m256 e = exponential(_mm256_sub_ps(load(x + i, n - i, least), most));
    sums[0] = _mm256_add_pd(sums[0], low_half(e));
    sums[1] = _mm256_add_pd(sums[1], high_half(e));
    store(y + i, n - i, e);
  }
  const __m256 inverse = _mm256_set1_ps((float)(1 / sum_of(sums[0], sums[1])));
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, n - i, _mm256_mul_ps(load(y + i, n - i), inverse));
}

static inline double mean_of(const float* x, int64_t n) {
  __m256d sums[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  for (int64_t i = 0; i < n; i += kLanes) {
    const __m256 a = load(x + i, n - i);
    sums[0] = _mm256_add_pd(sums[0], low_half(a));
    sums[1] = _mm256_add_pd(sums[1], high_half(a));
  }
  return sum_of(sums[0], sums[1]) / (double)n;
}

static inline double variance_of(const float* x, int64_t n, double mean) {
  const __m256d m = _mm256_set1_pd(mean);
  __m256d sums[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const __m256 a = _mm256_loadu_ps(x + i);
    const __m256d low = _mm256_sub_pd(low_half(a), m), high = _mm256_sub_pd(high_half(a), m);
    sums[0] = _mm256_fmadd_pd(low, low, sums[0]);
    sums[1] = _mm256_fmadd_pd(high, high, sums[1]);
  }
  double sum = sum_of(sums[0], sums[1]);
  for (; i < n; ++i) sum += (x[i] - mean) * (x[i] - mean);
  return sum / (double)n;
}

void layer_norm(const float* x, float* y, int64_t n, float eps, const float* scale, const float* shift) {
  const double mean = mean_of(x, n);
  const float inverse = (float)(1 / __builtin_sqrt(variance_of(x, n, mean) + eps));
  const float whole = (float)mean;  // the mean in two floats: the first difference is exact where it cancels most
  const __m256 m = _mm256_set1_ps(whole), rest = _mm256_set1_ps((float)(mean - whole));
  for (int64_t i = 0; i < n; i += kLanes) {
    const __m256 a = _mm256_sub_ps(_mm256_sub_ps(load(x + i, n - i), m), rest);
    const __m256 b = _mm256_mul_ps(a, _mm256_set1_ps(inverse));
    store(y + i, n - i, _mm256_fmadd_ps(b, load(scale + i, n - i), load(shift + i, n - i)));
  }
}

}  // namespace

const SrowsKernels srows_avx2 = {softmax, layer_norm};

}  // namespace qtool
