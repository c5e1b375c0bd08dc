// The kernels of the family in plain C++: each instruction set's file includes this text and the compiler makes vectors
// of its width out of the loops. No file but those may include it.
#include "core/functions.h"
#include "teltwise/teltwise.h"

namespace qtool {
namespace {

constexpr int kLanes = 64;

static inline float clamped(float x, float low, float high) {  // NaN stays
  const float most = x > high ? high : x;
  return most < low ? low : most;
}

template <class F>
static inline void each(int64_t count, F f) {
#pragma GCC ivdep  // an output may be the first input
  for (int64_t i = 0; i < count; i++) f(i);
}

// The integer of x before it is clamped.
template <bool Fused>
static inline float step_of(float x, float inverse, float zero) {
  return __builtin_rintf(Fused ? fused(x, inverse, zero) : x * inverse + zero);
}

template <bool Fused>
static inline void quantize_as(const float* x, float* y, int64_t count, const Grid& grid) {
  const float scale = grid.scale, inverse = grid.inverse, zero = grid.zero, low = grid.low, high = grid.high;
  each(count, [=](int64_t i) {
    const float r = step_of<Fused>(x[i], inverse, zero);
    const float least = r > low ? r : low;  // in this order NaN becomes the lower limit
    y[i] = scale * ((least < high ? least : high) - zero);
  });
}

void quantize(const float* x, float* y, int64_t count, const Grid& grid) {
  return grid.fused != 0 ? quantize_as<true>(x, y, count, grid) : quantize_as<false>(x, y, count, grid);
}

template <bool Fused>
static inline void quantize_grad_as(const float* x, const float* dy, float* dx, int64_t count, const Grid& grid) {
  const float inverse = grid.inverse, zero = grid.zero, low = grid.low, high = grid.high;
  each(count, [=](int64_t i) {
    const float r = step_of<Fused>(x[i], inverse, zero), given = dy[i];
    dx[i] = ((r >= low) & (r <= high)) != 0 ? given : 0.0f;
  });
}

void quantize_grad(const float* x, const float* dy, float* dx, int64_t count, const Grid& grid) {
  return grid.fused != 0 ? quantize_grad_as<true>(x, dy, dx, count, grid)
                         : quantize_grad_as<false>(x, dy, dx, count, grid);
}

template <bool Fused>
static inline double scale_grad_as(const float* x, const float* dy, int64_t count, const Grid& grid) {
  const float scale = grid.scale, inverse = grid.inverse, zero = grid.zero, low = grid.low, high = grid.high;
  float sums[kLanes] = {};
  const auto add = [&](int64_t i, int lane) {
    const float r = step_of<Fused>(x[i], inverse, zero), inside = r - zero - x[i] / scale;
    const float below = r < low ? low - zero : inside;
    sums[lane] = fused(dy[i], r > high ? high - zero : below, sums[lane]);
  };
  int64_t first = 0;
  for (; first + kLanes <= count; first += kLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; lane++) add(first + lane, lane);
  }
  for (int lane = 0; first + lane < count; lane++) add(first + lane, lane);
  double sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += sums[lane];
  return sum;
}

double scale_grad(const float* x, const float* dy, int64_t count, const Grid& grid) {
  return grid.fused != 0 ? scale_grad_as<true>(x, dy, count, grid) : scale_grad_as<false>(x, dy, count, grid);
}

Extremes extremes(const float* x, int64_t count) {
  float low[kLanes], high[kLanes], odd[kLanes];
  for (int lane = 0; lane < kLanes; lane++) {
    low[lane] = __builtin_inff();
    high[lane] = -__builtin_inff();
    odd[lane] = 0.0f;  // NaN once it has met one
  }
  const auto meet = [&](float v, int lane) {
    low[lane] = v < low[lane] ? v : low[lane];
    high[lane] = v > high[lane] ? v : high[lane];
    odd[lane] = v == v ? odd[lane] : v;
  };
  int64_t first = 0;
  for (; first + kLanes <= count; first += kLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; lane++) meet(x[first + lane], lane);
  }
  for (int lane = 0; first + lane < count; lane++) meet(x[first + lane], lane);
  Extremes all = {low[0], high[0]};
  float nan = odd[0];
  for (int lane = 1; lane < kLanes; lane++) {
    all.low = low[lane] < all.low ? low[lane] : all.low;
    all.high = high[lane] > all.high ? high[lane] : all.high;
    nan = odd[lane] == odd[lane] ? nan : odd[lane];
  }
  return nan == nan ? all : Extremes{nan, nan};
}

void clamp(const float* x, float* y, int64_t count, float low, float high) {
  each(count, [=](int64_t i) { y[i] = clamped(x[i], low, high); });
}

// A limit that is NaN cuts nothing.
void clamp_grad(const float* x, const float* dy, float* dx, int64_t count, float low, float high) {
  each(count, [=](int64_t i) {
    const float given = dy[i];
    dx[i] = ((x[i] <= low) | (x[i] >= high)) != 0 ? 0.0f : given;
  });
}

void add(const float* a, const float* b, float* y, int64_t count, float low, float high) {
  each(count, [=](int64_t i) { y[i] = clamped(a[i] + b[i], low, high); });
}

constexpr TeltwiseKernels kKernels = {quantize, quantize_grad, scale_grad, extremes, clamp, clamp_grad, add};

}  // namespace
}  // namespace qtool
