// The kernels of the family in plain C++: each instruction set's file includes this text and the compiler makes vectors
// of its width out of the loops. No file but those may include it.
#include "core/functions.h"
#include "tnorm/tnorm.h"

namespace qtool {
namespace {

// Calls f(i, p) for every element i, at place p of the period.
template <class F>
static inline void each(int64_t count, int64_t period, F f) {
  int64_t first = 0;
  for (; first + period <= count; first += period) {
#pragma GCC ivdep
    for (int64_t p = 0; p < period; p++) f(first + p, p);
  }
  for (int64_t p = 0; first + p < count; p++) f(first + p, p);
}

void add(const float* x, int64_t count, int64_t period, float* sum) {
  each(count, period, [=](int64_t i, int64_t p) { sum[p] += x[i]; });
}

void add_squares(const float* x, int64_t count, int64_t period, const float* mean, float* sum) {
  each(count, period, [=](int64_t i, int64_t p) {
    const float d = x[i] - mean[p];
    sum[p] = fused(d, d, sum[p]);
  });
}

void add_grads(const float* x, const float* dy, int64_t count, int64_t period, const float* mean, float* by_bias,
               float* by_weight) {
  each(count, period, [=](int64_t i, int64_t p) {
    by_bias[p] += dy[i];
    by_weight[p] = fused(dy[i], x[i] - mean[p], by_weight[p]);
  });
}

void grad(const float* x, const float* dy, float* dx, int64_t count, int64_t period,
          const float* const* mean_factor_slope_shift) {
  const float *mean = mean_factor_slope_shift[0], *factor = mean_factor_slope_shift[1];
  const float *slope = mean_factor_slope_shift[2], *shift = mean_factor_slope_shift[3];
  each(count, period, [=](int64_t i, int64_t p) {
    dx[i] = fused(factor[p], dy[i], fused(slope[p], x[i] - mean[p], shift[p]));
  });
}

void affine(const float* x, float* y, int64_t count, int64_t period, const float* scale, const float* shift) {
  each(count, period, [=](int64_t i, int64_t p) { y[i] = x[i] * scale[p] + shift[p]; });
}

constexpr TnormKernels kKernels = {add, add_squares, add_grads, grad, affine};

}  // namespace
}  // namespace qtool
