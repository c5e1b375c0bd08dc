// The kernels of the family in plain C++: each instruction set's file includes this text and the compiler makes vectors
// of its width out of the loops. No file but those may include it.
#include "core/functions.h"
#include "eltwise/eltwise.h"

namespace qtool {
namespace {

static inline float clamped(float x, float low, float high) {
  const float most = x < high ? x : high;
  return most > low ? most : low;
}

template <class F>
static inline void each_pair(const float* a, const float* b, float* y, int64_t count, const BinaryRow& row, F f) {
  const float low = row.low, high = row.high;
  if (row.b_step == 0) {
    const float one = b[0];
#pragma GCC ivdep  // y may be a
    for (int64_t i = 0; i < count; i++) y[i] = clamped(f(a[i], one), low, high);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; i++) y[i] = clamped(f(a[i], b[i]), low, high);
  }
}

void binary(const float* a, const float* b, float* y, int64_t count, const BinaryRow& row) {
  switch (row.kind) {
    case QT_ADD: return each_pair(a, b, y, count, row, [](float p, float q) { return p + q; });
    case QT_SUB: return each_pair(a, b, y, count, row, [](float p, float q) { return p - q; });
    case QT_MUL: return each_pair(a, b, y, count, row, [](float p, float q) { return p * q; });
    default: return each_pair(a, b, y, count, row, [](float p, float q) { return p / q; });
  }
}

template <class F>
static inline void each(const float* x, float* y, int64_t count, F f) {
#pragma GCC ivdep  // y may be x
  for (int64_t i = 0; i < count; i++) y[i] = f(x[i]);
}

void unary(const float* x, float* y, int64_t count, int kind, float a, float b) {
  switch (kind) {
    case QT_CLAMP: return each(x, y, count, [=](float v) { return clamped(v, a, b); });
    case QT_LEAKY_RELU: return each(x, y, count, [=](float v) { return v > 0.0f ? v : v * a; });
    case QT_ELU: return each(x, y, count, [=](float v) { return v > 0.0f ? v : a * expm1_of(v > 0.0f ? 0.0f : v); });
    case QT_HARDSWISH: return each(x, y, count, [](float v) { return v * clamped(v + 3.0f, 0.0f, 6.0f) / 6.0f; });
    case QT_HARDSIGMOID: return each(x, y, count, [](float v) { return clamped(v + 3.0f, 0.0f, 6.0f) / 6.0f; });
    case QT_SIGMOID: return each(x, y, count, [](float v) { return sigmoid_of(v); });
    case QT_TANH: return each(x, y, count, [](float v) { return tanh_of(v); });
    case QT_GELU: return each(x, y, count, [](float v) { return gelu_of(v); });
    case QT_GELU_TANH: return each(x, y, count, [](float v) { return gelu_tanh_of(v); });
    case QT_SILU: return each(x, y, count, [](float v) { return v / (1.0f + exp_of(-v)); });
    default: return each(x, y, count, [](float v) { return exp_of(v); });
  }
}

void lut(const uint8_t* x, uint8_t* y, int64_t count, const uint8_t* table) {
  for (int64_t i = 0; i < count; i++) y[i] = table[x[i]];
}

constexpr EltwiseKernels kKernels = {binary, unary, lut};

}  // namespace
}  // namespace qtool
